"""Downsampling between stages: a 3x3 stride-2 convolution and BN (EfficientFormer, arXiv 2206.01191)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import Map, State

__all__ = ["Embed", "halved"]


def halved(state: Map, channels: int) -> Map:
    """The map after a 3x3 stride-2 convolution with padding 1; odd sides round up."""
    return Map(channels, (state.height + 1) // 2, (state.width + 1) // 2)


class EmbedModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


@dataclass(frozen=True)
class Embed(BlockSpec):
    """Halves each side of the map and sets the next stage's `width`."""

    kind: ClassVar[str] = "embed"
    width: int

    def __post_init__(self) -> None:
        """Refuse a width below one."""
        if self.width < 1:
            raise ValueError(f"embed width must be at least 1, got {self.width}")

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"an embed takes a map, got {state}")
        return state

    def output(self, state: State) -> Map:
        return halved(self._input(state), self.width)

    def macs(self, state: State) -> int:
        return 9 * self._input(state).channels * self.width * self.output(state).positions

    def params(self, state: State) -> int:
        return 9 * self._input(state).channels * self.width + 3 * self.width

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        return (Row("embed", source.positions, (("cin", source.channels), ("c", self.width))),)

    def build(self, state: State) -> nn.Module:
        return EmbedModule(self._input(state).channels, self.width)
