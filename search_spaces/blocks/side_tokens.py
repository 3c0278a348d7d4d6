"""Learned tokens beside a map, the start of a second stream (Mobile-Former, arXiv 2108.05895, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.streams import Pair
from search_spaces.states import Map, State, Streams

__all__ = ["SideTokens"]


class SideTokensModule(nn.Module):
    """(B, C, H, W) -> the map, and (B, count, width)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))

    def forward(self, x: Tensor) -> Pair:
        return x, self.tokens.expand(len(x), -1, -1)


@dataclass(frozen=True)
class SideTokens(BlockSpec):
    """Puts `count` learned tokens of `width` channels beside a map; they are the first ones of more, so token 0 is in every network."""

    kind: ClassVar[str] = "side_tokens"
    count: int
    width: int

    def __post_init__(self) -> None:
        """Refuse to add nothing."""
        if min(self.count, self.width) < 1:
            raise ValueError(f"tokens and their width must be at least 1, got {self.count} and {self.width}")

    @property
    def label(self) -> str:
        return f"{self.count} tokens of {self.width}"

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"tokens are put beside a map, once; got {state}")
        return state

    def output(self, state: State) -> Streams:
        return Streams(self._input(state), self.count, self.width)

    def macs(self, state: State) -> int:
        self._input(state)
        return 0

    def params(self, state: State) -> int:
        self._input(state)
        return self.count * self.width

    def rows(self, state: State) -> tuple[Row, ...]:
        return (Row("side_tokens", self._input(state).positions, (("tokens", self.count), ("d", self.width))),)

    def build(self, state: State) -> nn.Module:
        self._input(state)
        return SideTokensModule(self.count, self.width)
