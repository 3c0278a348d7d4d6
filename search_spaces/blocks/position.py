"""A position table, added to a map or to tokens: learned (ViT, arXiv 2010.11929; SReT, 2111.05297), or of sines (1706.03762)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.regrid import Grid, map_places, token_places
from search_spaces.states import Map, State, Tokens, tokens_of

__all__ = ["Position"]

FORMS = ("learned", "sines")


def sines(count: int, channels: int) -> Tensor:
    """(count, channels) sines of each token's number, in turn with cosines (arXiv 1706.03762, section 3.5); on the CPU."""
    number = torch.arange(count, dtype=torch.float64, device="cpu")[:, None]
    channel = torch.arange(channels, device="cpu")
    angles = number / 10000 ** (2 * (channel // 2) / channels)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()


class PositionModule(nn.Module):
    """(B, C, H, W) or (B, N, C) -> the same, plus a table of that shape for one image."""

    def __init__(self, shape: tuple[int, ...], form: str) -> None:
        super().__init__()
        if form == "sines":  # with storage of its own wherever the network is built, and no gradient
            self.table = nn.Parameter(sines(*shape), requires_grad=False)
        else:
            self.table = nn.Parameter(torch.empty(shape))
            nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


@dataclass(frozen=True)
class Position(BlockSpec):
    """Adds a value for each place and channel: learned, or fixed sines of each token's number, which count as parameters as in releases."""

    kind: ClassVar[str] = "position"
    form: str = "learned"

    def __post_init__(self) -> None:
        """Refuse an unknown form."""
        if self.form not in FORMS:
            raise ValueError(f"form of positions must be one of {', '.join(FORMS)}, got {self.form!r}")

    def output(self, state: State) -> Map | Tokens:
        if isinstance(state, Map) and self.form == "sines":
            raise ValueError(f"sines number tokens, not the places of a map; got {state}")
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
        return {} if self.form == "sines" else {"table": f"{grid[0]}x{grid[1]}"}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        own = self.output(state)
        if isinstance(own, Map):
            return map_places(tensor, (own.height, own.width))
        return token_places(tensor, source, own.grid, prefix=len(tensor) - source[0] * source[1])

    def build(self, state: State) -> nn.Module:
        source = self.output(state)
        if isinstance(source, Map):
            return PositionModule((source.channels, source.height, source.width), self.form)
        return PositionModule((source.count, source.channels), self.form)
