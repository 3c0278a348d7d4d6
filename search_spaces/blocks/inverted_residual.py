"""MobileNetV2's inverted residual (arXiv 1801.04381, section 3.3), with SiLU as in MobileViT (2110.02178)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.conv import ConvNormAct, strided
from search_spaces.blocks.residual import fewer, hidden_width
from search_spaces.states import Map, State

__all__ = ["InvertedResidual"]


class InvertedResidualModule(nn.Module):
    """(B, C, H, W) -> (B, width, H / stride, W / stride); added to its input where both have one shape."""

    def __init__(self, channels: int, hidden: int, width: int, stride: int) -> None:
        super().__init__()
        self.expand = ConvNormAct(channels, hidden)
        self.depthwise = ConvNormAct(hidden, hidden, 3, stride, groups=hidden)
        self.reduce = ConvNormAct(hidden, width, act=False)
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduce(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


@dataclass(frozen=True)
class InvertedResidual(BlockSpec):
    """1x1 convolution to `expand * C` channels, depthwise 3x3 of `stride`, 1x1 to `width`; BN after each, SiLU after the first two."""

    kind: ClassVar[str] = "inverted_residual"
    width: int
    stride: int = 1
    expand: float = 4

    def __post_init__(self) -> None:
        """Refuse an empty output and strides other than 1 and 2."""
        if self.width < 1 or self.stride not in (1, 2):
            raise ValueError(f"width must be at least 1 and stride 1 or 2, got {self.width} and {self.stride}")

    @property
    def label(self) -> str:
        return f"IR×{self.expand:g}→{self.width}"

    def _input(self, state: State) -> tuple[Map, int]:
        """The map, and how many channels it is expanded to."""
        if not isinstance(state, Map):
            raise ValueError(f"an inverted residual takes a map, so it cannot follow MB3D; got {state}")
        return state, hidden_width(state.channels, self.expand)

    def output(self, state: State) -> Map:
        return strided(self._input(state)[0], self.width, self.stride)

    def macs(self, state: State) -> int:
        source, hidden = self._input(state)
        return hidden * (source.channels * source.positions + (9 + self.width) * self.output(state).positions)

    def params(self, state: State) -> int:
        source, hidden = self._input(state)
        return hidden * (source.channels + 9 + self.width + 4) + 2 * self.width

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        dims = (("cin", source.channels), ("c", self.width), ("hidden", hidden), ("stride", self.stride))
        return (Row("inverted_residual", source.positions, dims),)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        source, hidden = self._input(state)
        less = fewer(hidden, share)
        found = replace(self, expand=less / source.channels)
        return {f"hidden width {hidden} → {less}": found} if less < hidden else {}

    def build(self, state: State) -> nn.Module:
        source, hidden = self._input(state)
        return InvertedResidualModule(source.channels, hidden, self.width, self.stride)
