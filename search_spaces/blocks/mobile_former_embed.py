"""Mobile-Former's downsampling block: two lite bottlenecks, the first of stride 2, and a transformer on a few tokens (arXiv 2108.05895, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.bridged import BridgedSpec, Part, streams_of
from search_spaces.blocks.embed import halved
from search_spaces.blocks.residual import fewer
from search_spaces.blocks.runs import Runs, check_groups, shuffled
from search_spaces.blocks.streams import DynamicRelu, Former, Pair, ToFormer, ToMobile, Work
from search_spaces.states import State, Streams

__all__ = ["MobileFormerEmbed"]


class MobileFormerEmbedModule(nn.Module):
    """A map (B, C_in, H, W) and tokens (B, M, d) -> (B, width, H/2, W/2) and (B, M, d)."""

    def __init__(self, spec: "MobileFormerEmbed", source: Streams, out: Streams) -> None:
        super().__init__()
        channels, width = source.channels, spec.width
        first, second = channels * spec.ratio, width * spec.ratio2
        self.to_former = ToFormer(source) if spec.to_former else None
        self.former = Former(source.width)
        self.depthwise1 = nn.Conv2d(channels, first, 3, stride=2, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.act1 = DynamicRelu(first, source.width)
        self.pointwise1 = nn.Conv2d(first, width, 1, groups=spec.groups, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.depthwise2 = nn.Conv2d(width, second, 3, padding=1, groups=width, bias=False)
        self.norm3 = nn.BatchNorm2d(second)
        self.act2 = DynamicRelu(second, source.width)
        self.pointwise2 = nn.Conv2d(second, width, 1, groups=spec.groups, bias=False)
        self.norm4 = nn.BatchNorm2d(width)
        self.to_mobile = ToMobile(out) if spec.to_mobile else None
        self.runs1, self.runs2 = (channels, width) if spec.groups > 1 else (1, 1)

    def forward(self, pair: Pair) -> Pair:
        x, z = pair
        z = self.former(z if self.to_former is None else self.to_former(x, z))
        token = z[:, 0]
        x = self.act1(shuffled(self.norm1(self.depthwise1(x)), self.runs1), token)
        x = self.norm2(self.pointwise1(x))
        y = self.act2(shuffled(self.norm3(self.depthwise2(x)), self.runs2), token)
        x = x + self.norm4(self.pointwise2(y))
        return x if self.to_mobile is None else self.to_mobile(x, z), z


@dataclass(frozen=True)
class MobileFormerEmbed(BridgedSpec):
    """Halves each side of the map and sets the next stage's `width`; what goes on beside it is as in `MobileFormer`.

    A depthwise 3x3 whose every channel gives `ratio` others, 1x1, and then the same with `ratio2`, which is added. Both
    activations' slopes are told by token 0. `groups`: of the 1x1 convolutions; with several, channels are shuffled before each.
    `to_former`, `to_mobile`: whether there is a bridge from the map to the tokens, and back.
    """

    kind: ClassVar[str] = "mobile_former_embed"
    width: int
    ratio: int = 6
    ratio2: int = 4
    groups: int = 1
    to_former: bool = True
    to_mobile: bool = True

    def __post_init__(self) -> None:
        """Refuse empty sizes."""
        if min(self.width, self.ratio, self.ratio2, self.groups) < 1:
            raise ValueError(f"width, ratios and groups must be at least 1, got {self}")

    @property
    def label(self) -> str:
        return f"{self.width}×{self.ratio},{self.ratio2}:"

    def _input(self, state: State) -> tuple[Streams, int, int]:
        """Map and tokens, and the hidden channels of both bottlenecks."""
        source = streams_of(state)
        first, second = source.channels * self.ratio, self.width * self.ratio2
        check_groups("a 1x1 convolution", self.groups, first, second, self.width)
        return source, first, second

    def output(self, state: State) -> Streams:
        source, *_ = self._input(state)
        return streams_of(replace(source, map=halved(source.map, self.width)))

    def _mobile(self, state: State) -> Part:
        source, first, second = self._input(state)
        c, d, after = source.channels, source.width, self.output(state).map.positions
        slopes = [DynamicRelu.work(hidden, d) for hidden in (first, second)]
        convs = (first + second) * 9 + (first + second) * self.width // self.groups
        norms = 2 * (first + second) + 4 * self.width
        dims: tuple[tuple[str, int], ...] = (("cin", c), ("hidden", first), ("c", self.width), ("hidden2", second))
        dims += (("d", d), *((("groups", self.groups),) if self.groups > 1 else ()))
        macs, params = (sum(one) for one in zip(*slopes, strict=True))
        work = Work(convs * after + macs, convs + norms + params)
        return Part(Row("mobile_former_embed", source.map.positions, dims), work)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        self._input(state)
        less, less2 = fewer(self.ratio, share), fewer(self.ratio2, share)
        found: dict[str, BlockSpec] = {}
        if less < self.ratio:
            found[f"first expansion {self.ratio} → {less}"] = replace(self, ratio=less)
        if less2 < self.ratio2:
            found[f"second expansion {self.ratio2} → {less2}"] = replace(self, ratio2=less2)
        return found

    def runs(self, name: str, state: State) -> Runs | None:
        part, told = name.partition(".")[0], name.startswith(("act1.fc2.", "act2.fc2."))
        if self.groups > 1:  # whose 1x1 convolutions take the channels in another order
            return (0, (2,)) if told else None
        first = {"depthwise1": 0, "norm1": 0, "act1": 0, "pointwise1": 1}
        second = {"depthwise2": 0, "norm3": 0, "act2": 0, "pointwise2": 1}
        runs = self._input(state)[0].channels if part in first else self.width
        if part in ("act1", "act2"):
            return (0, (2, runs)) if told else None
        dimension = {**first, **second}.get(part)
        return None if dimension is None else (dimension, (runs,))

    def build(self, state: State) -> nn.Module:
        return MobileFormerEmbedModule(self, self._input(state)[0], self.output(state))
