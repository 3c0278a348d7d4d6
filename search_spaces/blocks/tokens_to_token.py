"""T2T-ViT's way in: overlapping patches, gathered twice more from maps of tokens that have attended to each other (arXiv 2101.11986, section 3.1)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import Mlp
from search_spaces.regrid import Grid
from search_spaces.states import Map, State, Tokens

__all__ = ["TokensToToken"]

EPS = 1e-8  # of the sum that attention is divided by
KERNEL, STRIDE, PADDING = 3, 2, 1  # of the second and the third gathering


def _side(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


class Performer(nn.Module):
    """Attention of one head in linear time and an MLP, (B, N, C) -> (B, N, width) (Performer, arXiv 2009.14794).

    exp(q·k) is taken apart into positive features of q and of k, along fixed random directions.
    """

    def __init__(self, channels: int, width: int, directions: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.kqv = nn.Linear(channels, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width)
        # Features are not divided by √directions, as they are in the paper: the ONNX optimiser takes so small an addend as EPS for 0.
        self.eps = EPS * directions
        self.directions = nn.Parameter(torch.empty(directions, width), requires_grad=False)
        if not self.directions.is_meta:  # as long as Gaussian ones are, and orthogonal
            nn.init.orthogonal_(self.directions, math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        k, q = self._features(k), self._features(q)
        total = q @ k.sum(1)[..., None]
        y = v + self.proj(q @ (k.transpose(1, 2) @ v) / (total + self.eps))
        out: Tensor = y + self.mlp(self.norm2(y))
        return out

    def _features(self, x: Tensor) -> Tensor:
        """(B, N, directions), all above zero."""
        along = F.linear(x, self.directions) - x.square().sum(-1, keepdim=True) / 2
        return along.exp()


class TokensToTokenModule(nn.Module):
    """(B, C_in, H, W) -> (B, N, C)."""

    def __init__(self, spec: "TokensToToken", channels: int, grids: tuple[Grid, Grid]) -> None:
        super().__init__()
        self.first = (spec.kernel, 1, spec.padding, spec.stride)  # as unfold takes them
        self.grids = grids
        gathered = spec.between * KERNEL**2
        self.attention1 = Performer(channels * spec.kernel**2, spec.between, spec.directions)
        self.attention2 = Performer(gathered, spec.between, spec.directions)
        self.project = nn.Linear(gathered, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(x, *self.first).transpose(1, 2)
        for attention, grid in zip((self.attention1, self.attention2), self.grids, strict=True):
            on_map = attention(x).transpose(1, 2).reshape(len(x), -1, *grid)
            x = F.unfold(on_map, KERNEL, 1, PADDING, STRIDE).transpose(1, 2)
        out: Tensor = self.project(x)
        return out


@dataclass(frozen=True)
class TokensToToken(BlockSpec):
    """Gathers squares of `kernel` places every `stride` of a map with `padding` around it, then 3x3 every 2 of those twice, and projects to `width`.

    In between the tokens, `between` wide, pass a `Performer` with as many `directions`.
    """

    kind: ClassVar[str] = "tokens_to_token"
    width: int
    kernel: int = 7
    stride: int = 4
    padding: int = 2
    between: int = 64
    directions: int = 32

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        sizes = (self.width, self.kernel, self.stride, self.between, self.directions)
        if min(sizes) < 1 or not 0 <= self.padding < self.kernel:
            raise ValueError(f"sizes must be at least 1, and padding from 0 to less than the kernel, got {self}")

    def _grids(self, state: State) -> tuple[Map, tuple[Grid, Grid, Grid]]:
        """The map, and the grids after each gathering."""
        if not isinstance(state, Map):
            raise ValueError(f"tokens are gathered from a map, got {state}")
        sides = [state.height, state.width]
        found: list[Grid] = []
        for steps in ((self.kernel, self.stride, self.padding), *((KERNEL, STRIDE, PADDING),) * 2):
            sides = [_side(side, *steps) for side in sides]
            if min(sides) < 1:
                raise ValueError(f"a map of {state.height} x {state.width} is smaller than the kernel, {self.kernel}")
            found.append((sides[0], sides[1]))
        first, second, third = found
        return state, (first, second, third)

    @property
    def label(self) -> str:
        return f"{self.width}/T2T{self.kernel}:"

    def output(self, state: State) -> Tokens:
        _, (*_, grid) = self._grids(state)
        return Tokens(grid[0] * grid[1], self.width, grid)

    def macs(self, state: State) -> int:
        source, (first, second, third) = self._grids(state)
        gathered = self.between * KERNEL**2
        attention = self._performer_macs(first, source.channels * self.kernel**2)
        attention += self._performer_macs(second, gathered)
        return attention + math.prod(third) * gathered * self.width

    def _performer_macs(self, grid: Grid, channels: int) -> int:
        layers = 3 * channels * self.between + 3 * self.between**2
        features = 4 * self.directions * self.between + self.directions
        return math.prod(grid) * (layers + features)

    def params(self, state: State) -> int:
        source, _ = self._grids(state)
        gathered = self.between * KERNEL**2
        attention = sum(self._performer_params(c) for c in (source.channels * self.kernel**2, gathered))
        return attention + (gathered + 1) * self.width

    def _performer_params(self, channels: int) -> int:
        norms = 2 * channels + 2 * self.between
        layers = 3 * (channels + 1) * self.between + 3 * (self.between + 1) * self.between
        return norms + layers + self.directions * self.between

    def rows(self, state: State) -> tuple[Row, ...]:
        source, _ = self._grids(state)
        dims = (
            ("cin", source.channels),
            ("c", self.width),
            ("kernel", self.kernel),
            ("stride", self.stride),
            ("padding", self.padding),
            ("between", self.between),
            ("directions", self.directions),
        )
        return (Row("tokens_to_token", source.positions, dims),)

    def build(self, state: State) -> nn.Module:
        source, (first, second, _) = self._grids(state)
        return TokensToTokenModule(self, source.channels, (first, second))
