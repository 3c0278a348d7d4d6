"""A ViT's way in: patches of the image as tokens, and a class token before them (arXiv 2010.11929, section 3.1)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import Map, State, Tokens

__all__ = ["ClassToken", "Patch"]


class PatchModule(nn.Module):
    """(B, C_in, H, W) -> (B, N, width)."""

    def __init__(self, channels: int, width: int, size: int, bias: bool, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, size, stride=size, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Patch(BlockSpec):
    """Cuts a map into squares of `size` places a side and projects each to a token of `width` channels.

    `padding`: zeros around the map, as many on each side (DVT, arXiv 2105.15075); then what makes no whole square at the end is cut off.
    """

    kind: ClassVar[str] = "patch"
    width: int
    size: int = 16
    bias: bool = True
    padding: int = 0

    def __post_init__(self) -> None:
        """Refuse empty patches, and such as hold nothing but padding."""
        if min(self.width, self.size) < 1:
            raise ValueError(f"width and size of patches must be at least 1, got {self.width} and {self.size}")
        if not 0 <= self.padding < self.size:
            raise ValueError(f"padding of patches of {self.size} must be from 0 to {self.size - 1}, got {self.padding}")

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"patches are cut from a map, got {state}")
        sides = [side + 2 * self.padding for side in (state.height, state.width)]
        if any(side < self.size or (side % self.size and not self.padding) for side in sides):
            raise ValueError(f"a map of {state.height} x {state.width} cannot be cut into patches of {self.size}")
        return state

    def output(self, state: State) -> Tokens:
        source = self._input(state)
        grid = ((source.height + 2 * self.padding) // self.size, (source.width + 2 * self.padding) // self.size)
        return Tokens(grid[0] * grid[1], self.width, grid)

    @property
    def label(self) -> str:
        return f"{self.width}/{self.size}:"

    def macs(self, state: State) -> int:
        return self.output(state).count * self.size**2 * self._input(state).channels * self.width

    def params(self, state: State) -> int:
        return (self._input(state).channels * self.size**2 + self.bias) * self.width

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims = (
            ("cin", source.channels),
            ("c", self.width),
            ("size", self.size),
            *(() if self.bias else (("bare", 1),)),
            *((("padding", self.padding),) if self.padding else ()),
        )
        return (Row("patch", source.positions, dims),)

    def build(self, state: State) -> nn.Module:
        return PatchModule(self._input(state).channels, self.width, self.size, self.bias, self.padding)


class ClassTokenModule(nn.Module):
    """(B, N, C) -> (B, count + N, C)."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, channels))
        nn.init.trunc_normal_(self.tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)


@dataclass(frozen=True)
class ClassToken(BlockSpec):
    """Puts `count` learned tokens before the patches: the class token, then DeiT's distillation token or registers (arXiv 2309.16588)."""

    kind: ClassVar[str] = "class_token"
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse to add nothing."""
        if self.count < 1:
            raise ValueError(f"at least one token must be added, got {self.count}")

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Tokens) or state.pruned or state.prefix:
            raise ValueError(f"class tokens are put before all patches, once; got {state}")
        if state.earlier is not None:
            raise ValueError(
                "class tokens are put before a reuse block, which spreads features over the tokens it gets"
            )
        return state

    def output(self, state: State) -> Tokens:
        source = self._input(state)
        return replace(source, count=self.count + source.count, prefix=self.count, scored_by=None)

    def macs(self, state: State) -> int:
        self._input(state)
        return 0

    def params(self, state: State) -> int:
        return self.count * self._input(state).channels

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        return (Row("class_token", source.count, (("c", source.channels), ("count", self.count))),)

    def build(self, state: State) -> nn.Module:
        return ClassTokenModule(self.count, self._input(state).channels)
