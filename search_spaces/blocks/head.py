"""Classification head: norm, mean over places, linear (EfficientFormer, arXiv 2206.01191), or the mean first (SReT, 2111.05297)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.streams import Pair
from search_spaces.states import Logits, Map, State, Streams, Tokens, tokens_of
from search_spaces.tokens import Kept, unpack

__all__ = ["Head"]

POOLS = ("mean", "token")
NORMS = ("layer", "batch", "none")


class HeadModule(nn.Module):
    """(B, N, C), (B, C, H, W), `Kept` or a map with tokens beside it -> (B, classes), or (B, C) without a classifier."""

    def __init__(self, spec: "Head", state: Tokens) -> None:
        super().__init__()
        channels = state.channels
        self.mean_first, self.pool, self.prefix = spec.mean_first, spec.pool, state.prefix
        self.places = state.grid[0] * state.grid[1]
        self.fused = self.places - state.patches if state.fused else 0  # patches that the last token stands for
        self.on_map = spec.norm == "batch"
        self.norm = self._norm(spec, channels)
        self.head = nn.Linear(channels, spec.classes) if spec.classes else nn.Identity()
        self.head_dist = nn.Linear(channels, spec.classes) if spec.distilled else None
        self.tokens = 1 + spec.distilled if spec.pool == "token" else 1

    @staticmethod
    def _norm(spec: "Head", channels: int) -> nn.Module:
        if spec.norm == "none":
            return nn.Identity()
        return nn.BatchNorm2d(channels, eps=spec.eps) if spec.norm == "batch" else nn.LayerNorm(channels, eps=spec.eps)

    def forward(self, given: Tensor | Kept | Pair) -> Tensor:
        """Pool, before the norm or after it, and score the classes."""
        given = given[0] if isinstance(given, tuple) else given
        kept = given if isinstance(given, Kept) else Kept(given)
        pooled = self.norm(kept.x).mean((2, 3)) if self.on_map else self._of_tokens(kept)
        logits: Tensor = self.head(pooled[:, 0] if self.tokens > 1 else pooled)
        if self.head_dist is None:
            return logits
        other: Tensor = self.head_dist(pooled[:, 1] if self.tokens > 1 else pooled)
        return (logits + other) / 2

    def _of_tokens(self, kept: Kept) -> Tensor:
        """What `_pooled` gives, normed; a map is laid out as tokens."""
        if kept.x.ndim == 4:
            kept = Kept(kept.x.flatten(2).transpose(1, 2))
        if self.mean_first or self.pool == "token":  # of a token it is the same before and after, and less work
            out: Tensor = self.norm(self._pooled(kept.x, kept))
            return out
        return self._pooled(self.norm(kept.x), kept)

    def _pooled(self, x: Tensor, kept: Kept) -> Tensor:
        """(B, C): the class token of each image, or the mean over its patches; (B, 2, C): class and distillation token."""
        first: int | slice = slice(self.tokens) if self.tokens > 1 else 0
        if kept.lengths is not None:
            images = unpack(x, kept.lengths)
            chosen = [own[first] if self.pool == "token" else own[self.prefix :].mean(0) for own in images]
            return torch.stack(chosen)
        if self.pool == "token":
            return x[:, first]
        patches = x[:, self.prefix :] if self.prefix else x
        if self.fused:
            return (patches[:, :-1].sum(1) + self.fused * patches[:, -1]) / self.places
        if kept.counts is None:
            return patches.mean(1)
        counts = kept.counts[:, self.prefix :, None]
        return (patches * counts).sum(1) / counts.sum(1)


@dataclass(frozen=True)
class Head(BlockSpec):
    """Linear classifier of the mean over the patches; `distilled` adds a second one whose logits are averaged in.

    Fused and merged tokens count in the mean as all the patches that they stand for; tokens beside a map do not.
    `mean_first`: the mean over places before the LN, as in SReT, not after it. `pool` token: the class token in its place, and
    the second classifier's is the distillation token behind it (DeiT, arXiv 2012.12877, section 4).
    `norm` batch: BN of a map, as in EfficientFormerV2 (arXiv 2212.08059), in place of LN; none: no norm. `classes` 0: no classifier, an
    encoder's features are what the network gives.
    """

    kind: ClassVar[str] = "head"
    classes: int
    distilled: bool = False
    mean_first: bool = False
    pool: str = "mean"
    eps: float = 1e-5  # of the norm
    norm: str = "layer"

    def __post_init__(self) -> None:
        """Refuse an empty classifier, an unknown pooling or norm, and a BN that is not on the map."""
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.pool == "token" and self.mean_first:
            raise ValueError("mean_first says nothing of a head that pools a token; leave it out")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.norm == "batch" and (self.mean_first or self.pool == "token"):
            raise ValueError("a head with BN norms the map before its mean; leave out mean_first, and pool the mean")
        if self.norm == "none" and self.mean_first:
            raise ValueError("mean_first says nothing of a head without a norm; leave it out")
        if self.classes < 0 or (self.distilled and not self.classes):
            raise ValueError(
                f"a head tells at least one class apart, or 0 for features, which are not distilled; got {self.classes}"
            )

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Map | Tokens | Streams):
            raise ValueError(f"a head takes tokens or a map, got {state}")
        if self.norm == "batch" and isinstance(state, Tokens):
            raise ValueError(f"a head with BN takes a map, got {state}; norm must be layer")
        source = tokens_of(state)
        if self.pool == "token" and not source.prefix:
            raise ValueError("there is no class token to pool; put a class_token block before, or pool the mean")
        if self.pool == "token" and self.distilled and source.prefix < 2:
            raise ValueError("there is no distillation token; put a class_token block of count 2 before")
        return source

    def output(self, state: State) -> Logits:
        channels = self._input(state).channels
        return Logits(self.classes or channels)

    def macs(self, state: State) -> int:
        return self._input(state).channels * self.classes * (1 + self.distilled)

    def params(self, state: State) -> int:
        channels = self._input(state).channels
        norm = 0 if self.norm == "none" else 2 * channels
        return norm + (channels + 1) * self.classes * (1 + self.distilled)

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims: tuple[tuple[str, int], ...] = (
            ("c", source.channels),
            ("classes", self.classes),
            ("heads", 1 + self.distilled),
        )
        dims += (("mean_first", 1),) if self.mean_first else ()
        dims += (("batch_norm", 1),) if self.norm == "batch" else ()
        dims += (("bare", 1),) if self.norm == "none" else ()
        dims += (("token", 1),) if self.pool == "token" else ()
        dims += (("kept", 1),) if source.pruned else ()
        if self.pool == "mean":
            dims += (("fused", 1),) if source.fused else ()
            dims += (("sized", 1),) if source.sized else ()
        return (Row("head" if isinstance(state, Tokens) else "head.map", source.count, dims),)

    def build(self, state: State) -> nn.Module:
        return HeadModule(self, self._input(state))
