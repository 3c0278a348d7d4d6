"""Attention pooling: one learned query gathers the tokens into one (Set Transformer's PMA, arXiv 1810.00825; SigLIP, 2303.15343)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import MLPS, Mlp, gates, hidden_width
from search_spaces.states import State, Tokens
from search_spaces.tokens import Kept, attend, unpack

__all__ = ["AttentionPool"]


class AttentionPoolModule(nn.Module):
    """(B, N, C) or `Kept` -> (B, 1, C)."""

    def __init__(self, spec: "AttentionPool", state: Tokens) -> None:
        super().__init__()
        channels, self.heads, self.prefix = state.channels, spec.heads, state.prefix
        self.width = channels // spec.heads
        self.latent = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.latent, std=channels**-0.5)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, eps=spec.eps)
        self.mlp = Mlp(channels, hidden_width(channels, spec.ratio), spec.mlp)

    def forward(self, given: Tensor | Kept) -> Tensor:
        """Class tokens are left out."""
        kept = given if isinstance(given, Kept) else Kept(given)
        if kept.lengths is None:
            counts = None if kept.counts is None else kept.counts[:, self.prefix :]
            pooled = self._pooled(kept.x[:, self.prefix :], counts)
        else:
            pooled = torch.cat([self._pooled(own[None, self.prefix :]) for own in unpack(kept.x, kept.lengths)])
        pooled = self.proj(pooled)
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out

    def _pooled(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """(B, 1, C) of the tokens (B, N, C), each looked at as `counts` (B, N) tokens are."""
        batch, count, channels = x.shape
        width = self.width
        q = self.q(self.latent).reshape(1, self.heads, 1, width).expand(batch, -1, -1, -1)
        k, v = self.kv(x).reshape(batch, count, 2, self.heads, width).permute(2, 0, 3, 1, 4)
        if counts is None:
            context = attend(q, k, v, width**-0.5)
        else:
            weights = (q * width**-0.5 @ k.transpose(-2, -1)).softmax(-1) * counts[:, None, None]
            context = weights / weights.sum(-1, keepdim=True) @ v
        return context.transpose(1, 2).reshape(batch, 1, channels)


@dataclass(frozen=True)
class AttentionPool(BlockSpec):
    """Attention of one learned query to all patches, then a pre-LN MLP; one token is left."""

    kind: ClassVar[str] = "attention_pool"
    heads: int
    ratio: float = 4
    eps: float = 1e-5
    mlp: str = "gelu"

    def __post_init__(self) -> None:
        """Refuse empty heads and an unknown MLP."""
        if self.heads < 1 or self.mlp not in MLPS:
            raise ValueError(f"heads must be at least 1 and mlp one of {', '.join(MLPS)}, got {self}")

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Tokens):
            raise ValueError(f"attention pooling takes tokens, got {state}")
        if state.channels % self.heads:
            raise ValueError(f"{state.channels} channels cannot be shared out among {self.heads} heads")
        return state

    def output(self, state: State) -> Tokens:
        return Tokens(1, self._input(state).channels, (1, 1))

    def macs(self, state: State) -> int:
        source = self._input(state)
        n, c, hidden = source.count - source.prefix, source.channels, hidden_width(source.channels, self.ratio)
        return 2 * c * c + 2 * n * c * c + 2 * n * c + (1 + gates(self.mlp)) * c * hidden

    def params(self, state: State) -> int:
        c = self._input(state).channels
        hidden = hidden_width(c, self.ratio)
        mlp = (1 + gates(self.mlp)) * c * hidden + gates(self.mlp) * hidden + c
        return c + 4 * (c + 1) * c + 2 * c + mlp

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims: tuple[tuple[str, int], ...] = (
            ("c", source.channels),
            ("heads", self.heads),
            ("hidden", hidden_width(source.channels, self.ratio)),
        )
        form = list(MLPS).index(self.mlp)
        dims += (("mlp", form),) if form else ()
        dims += (("prefix", source.prefix),) if source.prefix else ()
        dims += (("kept", 1),) if source.pruned else ()
        dims += (("sized", 1),) if source.sized else ()
        return (Row("attention_pool", source.count, dims),)

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        if name.startswith("kv."):
            return {name: torch.unflatten(tensor, 0, (2, -1))}
        if name.startswith("mlp.fc1.") and gates(self.mlp) > 1:
            return {name: torch.unflatten(tensor, 0, (gates(self.mlp), -1))}
        return {name: tensor}

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        gated = name.startswith("mlp.fc1.") and gates(self.mlp) > 1
        return parts[name].flatten(0, 1) if gated or name.startswith("kv.") else parts[name]

    def build(self, state: State) -> nn.Module:
        return AttentionPoolModule(self, self._input(state))
