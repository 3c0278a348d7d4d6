"""Classification head: LN, mean over places, linear (EfficientFormer, arXiv 2206.01191), or the mean first (SReT, 2111.05297)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import Logits, Map, State, Tokens, tokens_of

__all__ = ["Head"]


class HeadModule(nn.Module):
    """(B, N, C) or (B, C, H, W) -> (B, classes)."""

    def __init__(self, channels: int, classes: int, distilled: bool, mean_first: bool) -> None:
        super().__init__()
        self.mean_first = mean_first
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, classes)
        self.head_dist = nn.Linear(channels, classes) if distilled else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        pooled = self.norm(x.mean(1)) if self.mean_first else self.norm(x).mean(1)
        logits: Tensor = self.head(pooled)
        return logits if self.head_dist is None else (logits + self.head_dist(pooled)) / 2


@dataclass(frozen=True)
class Head(BlockSpec):
    """Mean-pooled linear classifier; `distilled` adds a second one whose logits are averaged in.

    `mean_first`: the mean over places before the LN, as in SReT, not after it.
    """

    kind: ClassVar[str] = "head"
    classes: int
    distilled: bool = False
    mean_first: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty classifier."""
        if self.classes < 1:
            raise ValueError(f"a head needs at least one class, got {self.classes}")

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Map | Tokens):
            raise ValueError(f"a head takes tokens or a map, got {state}")
        return tokens_of(state)

    def output(self, state: State) -> Logits:
        self._input(state)
        return Logits(self.classes)

    def macs(self, state: State) -> int:
        return self._input(state).channels * self.classes * (1 + self.distilled)

    def params(self, state: State) -> int:
        channels = self._input(state).channels
        return 2 * channels + (channels + 1) * self.classes * (1 + self.distilled)

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims: tuple[tuple[str, int], ...] = (
            ("c", source.channels),
            ("classes", self.classes),
            ("heads", 1 + self.distilled),
        )
        dims += (("mean_first", 1),) if self.mean_first else ()
        return (Row("head.map" if isinstance(state, Map) else "head", source.count, dims),)

    def build(self, state: State) -> nn.Module:
        return HeadModule(self._input(state).channels, self.classes, self.distilled, self.mean_first)
