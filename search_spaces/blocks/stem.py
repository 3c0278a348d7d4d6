"""Convolutional stem: two 3x3 stride-2 conv-BN-ReLU, to a quarter of the resolution (EfficientFormer, arXiv 2206.01191)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import halved
from search_spaces.states import Map, State

__all__ = ["Stem"]


class StemModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/4, W/4)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.act(self.norm2(self.conv2(x)))
        return out


@dataclass(frozen=True)
class Stem(BlockSpec):
    """Stem of stride 4 whose first convolution has half of `width` channels."""

    kind: ClassVar[str] = "stem"
    width: int

    def __post_init__(self) -> None:
        """Refuse a width that cannot be halved."""
        if self.width < 2 or self.width % 2:
            raise ValueError(f"stem width must be even and at least 2, got {self.width}")

    def _halves(self, state: State) -> tuple[Map, Map, Map]:
        if not isinstance(state, Map):
            raise ValueError(f"a stem takes an image, got {state}")
        middle = halved(state, self.width // 2)
        return state, middle, halved(middle, self.width)

    def output(self, state: State) -> Map:
        return self._halves(state)[2]

    def macs(self, state: State) -> int:
        image, middle, out = self._halves(state)
        return 9 * (
            image.channels * middle.channels * middle.positions + middle.channels * out.channels * out.positions
        )

    def params(self, state: State) -> int:
        image, middle, out = self._halves(state)
        return 9 * (image.channels * middle.channels + middle.channels * out.channels) + 3 * (
            middle.channels + out.channels
        )

    def rows(self, state: State) -> tuple[Row, ...]:
        image = self._halves(state)[0]
        return (Row("stem", image.positions, (("cin", image.channels), ("c", self.width))),)

    def build(self, state: State) -> nn.Module:
        return StemModule(self._halves(state)[0].channels, self.width)
