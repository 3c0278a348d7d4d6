"""A convolution with BN and SiLU, as mobile networks begin and end (MobileNetV2, arXiv 1801.04381; MobileViT, 2110.02178)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import halved
from search_spaces.states import Map, State

__all__ = ["Conv", "ConvNormAct", "strided"]


class ConvNormAct(nn.Module):
    """(B, C, H, W) -> (B, width, H / stride, W / stride), odd sides rounded up: convolution without bias, BN, and SiLU where `act`."""

    def __init__(
        self, channels: int, width: int, size: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, stride, padding=size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


def strided(state: Map, width: int, stride: int) -> Map:
    """The map after a padded convolution of stride 1 or 2; odd sides round up."""
    return halved(state, width) if stride == 2 else Map(width, state.height, state.width)


@dataclass(frozen=True)
class Conv(BlockSpec):
    """A convolution of `size` x `size` places to `width` channels, BN and SiLU; `stride` 2 halves the sides."""

    kind: ClassVar[str] = "conv"
    width: int
    size: int = 3
    stride: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty output, a size without a middle, and strides other than 1 and 2."""
        if self.width < 1 or self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"width must be at least 1 and size odd, got {self.width} and {self.size}")
        if self.stride not in (1, 2):
            raise ValueError(f"a convolution has stride 1 or 2, got {self.stride}")

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"a convolution takes a map, got {state}")
        return state

    def output(self, state: State) -> Map:
        return strided(self._input(state), self.width, self.stride)

    @property
    def label(self) -> str:
        return f"{self.width}:" if self.stride == 2 else f"conv {self.width}"

    def macs(self, state: State) -> int:
        return self.size**2 * self._input(state).channels * self.width * self.output(state).positions

    def params(self, state: State) -> int:
        return (self.size**2 * self._input(state).channels + 2) * self.width

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims = (("cin", source.channels), ("c", self.width), ("size", self.size), ("stride", self.stride))
        return (Row("conv", source.positions, dims),)

    def build(self, state: State) -> nn.Module:
        return ConvNormAct(self._input(state).channels, self.width, self.size, self.stride)
