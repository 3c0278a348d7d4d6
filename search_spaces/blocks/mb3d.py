"""MB3D, EfficientFormer's token meta-block: multi-head self-attention with a position bias, and an MLP (arXiv 2206.01191, eq. 4)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import LayerScale, Mlp, hidden_width
from search_spaces.states import Map, State, Tokens, tokens_of

__all__ = ["MB3D", "Attention"]


def offset_index(grid: tuple[int, int]) -> Tensor:
    """(N, N) index of the absolute offset |dy| * width + |dx| between every two places of a grid."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    y, x = rows.flatten(), columns.flatten()
    return (y[:, None] - y[None, :]).abs() * grid[1] + (x[:, None] - x[None, :]).abs()


class Attention(nn.Module):
    """Multi-head self-attention on (B, N, C) whose q, k and v widths are free of C.

    The joint projection keeps each head's q, k and v together, so the first heads are its leading rows.
    """

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, heads: int, key_dim: int, value_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.qkv = nn.Linear(channels, heads * (2 * key_dim + value_dim))
        self.proj = nn.Linear(heads * value_dim, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("attention_bias_idxs", offset_index(grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        logits = (q * self.key_dim**-0.5) @ k.transpose(-2, -1) + self.attention_biases[:, self.attention_bias_idxs]
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, self.heads * self.value_dim)
        out: Tensor = self.proj(mixed)
        return out


class MB3DModule(nn.Module):
    """(B, N, C) or (B, C, H, W) -> (B, N, C)."""

    def __init__(self, spec: "MB3D", state: Tokens) -> None:
        super().__init__()
        channels = state.channels
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixer = Attention(channels, spec.heads, spec.key_dim, spec.value_dim, state.grid)
        self.ls1 = LayerScale(channels, spec.layer_scale)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, hidden_width(channels, spec.ratio))
        self.ls2 = LayerScale(channels, spec.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        x = x + self.ls1(self.token_mixer(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


@dataclass(frozen=True)
class MB3D(BlockSpec):
    """Pre-LN attention and pre-LN MLP; a map is laid out as tokens first. Widths `key_dim`, `value_dim` are per head."""

    kind: ClassVar[str] = "mb3d"
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128
    ratio: float = 4
    layer_scale: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse empty heads."""
        if min(self.heads, self.key_dim, self.value_dim) < 1:
            raise ValueError(f"heads and their widths must be at least 1, got {self}")

    def _input(self, state: State) -> tuple[Tokens, int]:
        if not isinstance(state, Map | Tokens):
            raise ValueError(f"MB3D takes tokens or a map, got {state}")
        return tokens_of(state), hidden_width(state.channels, self.ratio)

    def output(self, state: State) -> Tokens:
        return self._input(state)[0]

    def macs(self, state: State) -> int:
        source, hidden = self._input(state)
        n, c = source.count, source.channels
        projections = n * c * self.heads * (2 * self.key_dim + 2 * self.value_dim)
        return projections + n * n * self.heads * (self.key_dim + self.value_dim) + 2 * n * c * hidden

    def params(self, state: State) -> int:
        source, hidden = self._input(state)
        n, c = source.count, source.channels
        qkv = (c + 1) * self.heads * (2 * self.key_dim + self.value_dim)
        attention = qkv + self.heads * self.value_dim * c + c + self.heads * n
        return attention + 2 * c * hidden + hidden + c + 6 * c  # two LNs and two layer scales

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        channels = ("c", source.channels)
        widths = (("heads", self.heads), ("qk", self.key_dim), ("v", self.value_dim))
        rows = (
            Row("mb3d.attention", source.count, (channels, *widths)),
            Row("mb3d.ffn", source.count, (channels, ("hidden", hidden))),
        )
        return (Row("flatten", source.count, (channels,)), *rows) if isinstance(state, Map) else rows

    def build(self, state: State) -> nn.Module:
        return MB3DModule(self, self._input(state)[0])
