"""Convolutional stem: 3x3 stride-2 convolutions, each with BN and an activation (EfficientFormer, arXiv 2206.01191; SReT, 2111.05297)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import halved
from search_spaces.states import Map, State

__all__ = ["ACTIVATIONS", "Stem"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "relu6": nn.ReLU6}


class StemModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/4, W/4); half of the sides with one convolution, an eighth with three."""

    def __init__(self, channels: list[int], act: str, bias: bool) -> None:
        """`channels`: of the image, and behind each convolution."""
        super().__init__()
        pairs = list(pairwise(channels))
        convs = [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=bias) for before, after in pairs]
        norms = [nn.BatchNorm2d(after) for _, after in pairs]
        self.conv1, self.norm1 = convs[0], norms[0]
        self.conv2 = convs[1] if len(pairs) > 1 else None
        self.norm2 = norms[1] if len(pairs) > 1 else None
        self.conv3 = convs[2] if len(pairs) > 2 else None
        self.norm3 = norms[2] if len(pairs) > 2 else None
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        if self.conv2 is not None and self.norm2 is not None:
            x = self.act(self.norm2(self.conv2(x)))
        if self.conv3 is not None and self.norm3 is not None:
            x = self.act(self.norm3(self.conv3(x)))
        return x


@dataclass(frozen=True)
class Stem(BlockSpec):
    """`convs` (1 to 3) convolutions that halve the sides; of several, the first has half of `width` channels.

    `act`: relu, gelu as in EfficientFormerV2 (arXiv 2212.08059), or relu6 as in Mobile-Former (2108.05895), whose convolutions
    have no `bias`.
    """

    kind: ClassVar[str] = "stem"
    width: int
    convs: int = 2
    act: str = "relu"
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse a width that cannot be halved, other numbers of convolutions, and an unknown activation."""
        if self.width < 2 or self.width % 2:
            raise ValueError(f"stem width must be even and at least 2, got {self.width}")
        if self.convs not in (1, 2, 3):
            raise ValueError(f"a stem has 1, 2 or 3 convolutions, got {self.convs}")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {self.act!r}")

    def _maps(self, state: State) -> list[Map]:
        """The input and what each convolution gives."""
        if not isinstance(state, Map):
            raise ValueError(f"a stem takes an image, got {state}")
        maps = [state]
        half = [self.width // 2] if self.convs > 1 else []
        for channels in (*half, *[self.width] * (self.convs - len(half))):
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
        extra = 2 + self.bias
        return sum((9 * before.channels + extra) * after.channels for before, after in pairwise(self._maps(state)))

    def rows(self, state: State) -> tuple[Row, ...]:
        image = self._maps(state)[0]
        more: tuple[tuple[str, int], ...] = (("convs", self.convs),) if self.convs != 2 else ()
        more += ((self.act, 1),) if self.act != "relu" else ()
        more += (("bare", 1),) if not self.bias else ()
        return (Row("stem", image.positions, (("cin", image.channels), ("c", self.width), *more)),)

    def build(self, state: State) -> nn.Module:
        return StemModule([each.channels for each in self._maps(state)], self.act, self.bias)
