"""Lite bottleneck: a depthwise convolution that widens, then a 1x1 convolution (Mobile-Former, arXiv 2108.05895, section 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import fewer
from search_spaces.blocks.runs import Runs, RunsSpec, check_groups, shuffled
from search_spaces.states import Map, State

__all__ = ["LiteBottleneck"]


class LiteBottleneckModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H / stride, W / stride)."""

    def __init__(self, spec: "LiteBottleneck", source: Map, out: Map) -> None:
        super().__init__()
        channels, hidden = source.channels, source.channels * spec.ratio
        self.depthwise = nn.Conv2d(channels, hidden, 3, spec.stride, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU6()
        self.pointwise = nn.Conv2d(hidden, spec.width, 1, groups=spec.groups, bias=False)
        self.norm2 = nn.BatchNorm2d(spec.width)
        self.runs = channels if spec.groups > 1 else 1
        self.skip = source == out

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(self.act(self.norm1(self.depthwise(x))), self.runs)
        out: Tensor = self.norm2(self.pointwise(y))
        return x + out if self.skip else out


@dataclass(frozen=True)
class LiteBottleneck(RunsSpec):
    """Depthwise 3x3 whose every channel gives `ratio` others, BN, ReLU6, 1x1, BN; a skip where the map keeps its shape.

    `stride` 2 halves the sides. `groups`: of the 1x1 convolution; with several, channels are shuffled before it.
    """

    kind: ClassVar[str] = "lite_bottleneck"
    width: int
    ratio: int = 2
    stride: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse empty sizes and strides other than 1 and 2."""
        if min(self.width, self.ratio, self.groups) < 1:
            raise ValueError(f"width, ratio and groups must be at least 1, got {self}")
        if self.stride not in (1, 2):
            raise ValueError(f"a lite bottleneck has stride 1 or 2, got {self.stride}")

    @property
    def label(self) -> str:
        return f"{self.width} lite×{self.ratio}" + (" /2" if self.stride == 2 else "")

    def _input(self, state: State) -> tuple[Map, int]:
        """The map, and the channels of the hidden one."""
        if not isinstance(state, Map):
            raise ValueError(f"a lite bottleneck takes a map, got {state}")
        hidden = state.channels * self.ratio
        check_groups("a lite bottleneck", self.groups, hidden, self.width)
        return state, hidden

    def output(self, state: State) -> Map:
        source, _ = self._input(state)
        return Map(self.width, -(-source.height // self.stride), -(-source.width // self.stride))

    def _weights(self, state: State) -> int:
        """Of both convolutions."""
        _, hidden = self._input(state)
        return 9 * hidden + hidden * self.width // self.groups

    def macs(self, state: State) -> int:
        return self._weights(state) * self.output(state).positions

    def params(self, state: State) -> int:
        _, hidden = self._input(state)
        return self._weights(state) + 2 * (hidden + self.width)

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        dims: tuple[tuple[str, int], ...] = (("cin", source.channels), ("hidden", hidden), ("c", self.width))
        dims += (("stride", 2),) if self.stride == 2 else ()
        dims += (("groups", self.groups),) if self.groups > 1 else ()
        return (Row("lite_bottleneck", source.positions, dims),)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        self._input(state)
        less = fewer(self.ratio, share)
        return {f"expansion {self.ratio} → {less}": replace(self, ratio=less)} if less < self.ratio else {}

    def runs(self, name: str, state: State) -> Runs | None:
        if self.groups > 1:  # whose 1x1 convolution takes the channels in another order
            return None
        channels, part = self._input(state)[0].channels, name.partition(".")[0]
        return {"depthwise": (0, (channels,)), "norm1": (0, (channels,)), "pointwise": (1, (channels,))}.get(part)

    def build(self, state: State) -> nn.Module:
        return LiteBottleneckModule(self, self._input(state)[0], self.output(state))
