"""Convolutional stem: 3x3 stride-2 convolutions, each with BN and ReLU (EfficientFormer, arXiv 2206.01191; SReT, 2111.05297) or GELU."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import halved
from search_spaces.states import Map, State

__all__ = ["ACTIVATIONS", "Stem"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class StemModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/4, W/4), or an eighth of the sides with a third convolution."""

    def __init__(self, channels: int, width: int, convs: int, act: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, stride=2, padding=1) if convs == 3 else None
        self.norm3 = nn.BatchNorm2d(width) if convs == 3 else None
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        if self.conv3 is not None and self.norm3 is not None:
            x = self.act(self.norm3(self.conv3(x)))
        return x


@dataclass(frozen=True)
class Stem(BlockSpec):
    """`convs` (2 or 3) convolutions that halve the sides; the first has half of `width` channels.

    `act`: relu, or gelu as in EfficientFormerV2 (arXiv 2212.08059).
    """

    kind: ClassVar[str] = "stem"
    width: int
    convs: int = 2
    act: str = "relu"

    def __post_init__(self) -> None:
        """Refuse a width that cannot be halved, other numbers of convolutions, and an unknown activation."""
        if self.width < 2 or self.width % 2:
            raise ValueError(f"stem width must be even and at least 2, got {self.width}")
        if self.convs not in (2, 3):
            raise ValueError(f"a stem has 2 or 3 convolutions, got {self.convs}")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {self.act!r}")

    def _maps(self, state: State) -> list[Map]:
        """The input and what each convolution gives."""
        if not isinstance(state, Map):
            raise ValueError(f"a stem takes an image, got {state}")
        maps = [state]
        for channels in (self.width // 2, *[self.width] * (self.convs - 1)):
            maps.append(halved(maps[-1], channels))
        return maps

    def output(self, state: State) -> Map:
        return self._maps(state)[-1]

    @property
    def label(self) -> str:
        return f"{self.width}:"

    def macs(self, state: State) -> int:
        return sum(
            9 * before.channels * after.channels * after.positions for before, after in pairwise(self._maps(state))
        )

    def params(self, state: State) -> int:
        return sum((9 * before.channels + 3) * after.channels for before, after in pairwise(self._maps(state)))

    def rows(self, state: State) -> tuple[Row, ...]:
        image = self._maps(state)[0]
        more: tuple[tuple[str, int], ...] = (("convs", self.convs),) if self.convs > 2 else ()
        more += (("gelu", 1),) if self.act == "gelu" else ()
        return (Row("stem", image.positions, (("cin", image.channels), ("c", self.width), *more)),)

    def build(self, state: State) -> nn.Module:
        return StemModule(self._maps(state)[0].channels, self.width, self.convs, self.act)
