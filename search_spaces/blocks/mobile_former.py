"""Mobile-Former's block: an inverted bottleneck on a map and a transformer on a few tokens, bridged both ways (arXiv 2108.05895, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.bridged import BridgedSpec, Part, streams_of
from search_spaces.blocks.residual import fewer, hidden_width
from search_spaces.blocks.runs import Runs, check_groups, shuffled
from search_spaces.blocks.streams import DynamicRelu, Former, Pair, ToFormer, ToMobile, Work
from search_spaces.states import State, Streams

__all__ = ["MobileFormer"]


class MobileFormerModule(nn.Module):
    """A map (B, C, H, W) and tokens (B, M, d) -> (B, width, H, W) and (B, M, d)."""

    def __init__(self, spec: "MobileFormer", source: Streams, out: Streams, hidden: int) -> None:
        super().__init__()
        self.to_former = ToFormer(source) if spec.to_former else None
        self.former = Former(source.width)
        self.expand = nn.Conv2d(source.channels, hidden, 1, groups=spec.groups, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act1 = DynamicRelu(hidden, source.width)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.act2 = DynamicRelu(hidden, source.width)
        self.project = nn.Conv2d(hidden, spec.width, 1, groups=spec.groups, bias=False)
        self.norm3 = nn.BatchNorm2d(spec.width)
        self.to_mobile = ToMobile(out) if spec.to_mobile else None
        self.groups, self.skip = spec.groups, source == out

    def forward(self, pair: Pair) -> Pair:
        x, z = pair
        z = self.former(z if self.to_former is None else self.to_former(x, z))
        token = z[:, 0]
        y = self.act1(shuffled(self.norm1(self.expand(x)), self.groups), token)
        y = self.act2(self.norm2(self.depthwise(y)), token)
        y = shuffled(self.norm3(self.project(y)), self.groups)
        y = x + y if self.skip else y
        return y if self.to_mobile is None else self.to_mobile(y, z), z


@dataclass(frozen=True)
class MobileFormer(BridgedSpec):
    """Tokens read from the map and from each other; the map goes through 1x1, depthwise 3x3 and 1x1, and its places read from the tokens.

    Both activations' slopes are told by token 0. `ratio`: hidden channels over those that come in. A skip where the map keeps its
    `width`. `groups`: of the 1x1 convolutions; with several, channels are shuffled behind each. `to_former`, `to_mobile`:
    whether there is a bridge from the map to the tokens, and back.
    """

    kind: ClassVar[str] = "mobile_former"
    width: int
    ratio: float = 6
    groups: int = 1
    to_former: bool = True
    to_mobile: bool = True

    def __post_init__(self) -> None:
        """Refuse empty sizes."""
        if min(self.width, self.groups) < 1:
            raise ValueError(f"width and groups must be at least 1, got {self.width} and {self.groups}")

    @property
    def label(self) -> str:
        return f"{self.width}×{self.ratio:g}"

    def _input(self, state: State) -> tuple[Streams, int]:
        """Map and tokens, and the hidden channels."""
        source = streams_of(state)
        hidden = hidden_width(source.channels, self.ratio)
        check_groups("a 1x1 convolution", self.groups, source.channels, hidden, self.width)
        return source, hidden

    def output(self, state: State) -> Streams:
        source, _ = self._input(state)
        return streams_of(replace(source, map=replace(source.map, channels=self.width)))

    def _mobile(self, state: State) -> Part:
        source, hidden = self._input(state)
        c, d, n = source.channels, source.width, source.map.positions
        convs, slopes = (c + self.width) * hidden // self.groups + 9 * hidden, DynamicRelu.work(hidden, d)
        dims: tuple[tuple[str, int], ...] = (("cin", c), ("hidden", hidden), ("c", self.width), ("d", d))
        dims += (("groups", self.groups),) if self.groups > 1 else ()
        work = Work(convs * n + 2 * slopes.macs, convs + 4 * hidden + 2 * self.width + 2 * slopes.params)
        return Part(Row("mobile_former", n, dims), work)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        source, hidden = self._input(state)
        less = self.groups * fewer(hidden // self.groups, share)
        ratio = less / source.channels
        return {f"hidden width {hidden} → {less}": replace(self, ratio=ratio)} if less < hidden else {}

    def runs(self, name: str, state: State) -> Runs | None:
        return (0, (2,)) if name.startswith(("act1.fc2.", "act2.fc2.")) else None

    def build(self, state: State) -> nn.Module:
        source, hidden = self._input(state)
        return MobileFormerModule(self, source, self.output(state), hidden)
