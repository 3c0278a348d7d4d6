"""A learned position table, added to a map or to tokens (ViT, arXiv 2010.11929; SReT, 2111.05297)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.regrid import Grid, map_places, token_places
from search_spaces.states import Map, State, Tokens, tokens_of

__all__ = ["Position"]


class PositionModule(nn.Module):
    """(B, C, H, W) or (B, N, C) -> the same, plus a table of that shape for one image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


@dataclass(frozen=True)
class Position(BlockSpec):
    """Adds a value learned for each place and channel."""

    kind: ClassVar[str] = "position"

    def output(self, state: State) -> Map | Tokens:
        if not isinstance(state, Map | Tokens):
            raise ValueError(f"a position table takes a map or tokens, got {state}")
        if isinstance(state, Tokens) and state.pruned:
            raise ValueError("a position table needs every token of the grid, but some were dropped")
        return state if isinstance(state, Map) else replace(state, scored_by=None)

    def macs(self, state: State) -> int:
        self.output(state)
        return 0

    def params(self, state: State) -> int:
        source = tokens_of(self.output(state))
        return source.count * source.channels

    def rows(self, state: State) -> tuple[Row, ...]:
        source = tokens_of(self.output(state))
        name = "position" if isinstance(state, Map) else "position.tokens"
        return (Row(name, source.count, (("c", source.channels),)),)

    def grid_params(self, state: State) -> Mapping[str, str]:
        grid = tokens_of(self.output(state)).grid
        return {"table": f"{grid[0]}x{grid[1]}"}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        own = self.output(state)
        if isinstance(own, Map):
            return map_places(tensor, (own.height, own.width))
        return token_places(tensor, source, own.grid, prefix=len(tensor) - source[0] * source[1])

    def build(self, state: State) -> nn.Module:
        source = self.output(state)
        if isinstance(source, Map):
            return PositionModule((source.channels, source.height, source.width))
        return PositionModule((source.count, source.channels))
