"""Mobile-Former's way out: a last bridge to the tokens, then map and token 0 as one vector of features (arXiv 2108.05895, section 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.bridged import Part, PartedSpec, streams_of, to_former_part
from search_spaces.blocks.residual import fewer
from search_spaces.blocks.runs import check_groups, shuffled
from search_spaces.blocks.streams import Pair, ToFormer, Work
from search_spaces.states import State, Streams, Tokens

__all__ = ["MobileFormerPool"]


class MobileFormerPoolModule(nn.Module):
    """A map (B, C, H, W) and tokens (B, M, d) -> (B, 1, features)."""

    def __init__(self, spec: "MobileFormerPool", source: Streams) -> None:
        super().__init__()
        channels, hidden = source.channels, source.channels * spec.ratio
        self.to_former = ToFormer(source) if spec.to_former else None
        self.expand = nn.Conv2d(channels, hidden, 1, groups=spec.groups, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU6()
        self.fc = nn.Linear(hidden + source.width, spec.features)
        self.norm2 = nn.BatchNorm1d(spec.features)
        self.groups = spec.groups

    def forward(self, pair: Pair) -> Tensor:
        x, z = pair
        z = z if self.to_former is None else self.to_former(x, z)
        x = self.act(self.norm1(self.expand(shuffled(x, self.groups)))).mean((2, 3))
        both = torch.cat([nn.functional.hardswish(x), z[:, 0]], 1)
        return nn.functional.hardswish(self.norm2(self.fc(both)))[:, None]


@dataclass(frozen=True)
class MobileFormerPool(PartedSpec):
    """The tokens read from the map once more (`to_former`); 1x1 to `ratio` times the channels, BN, ReLU6, the mean over places, h-swish.

    With token 0 beside it, a linear layer, BN and h-swish make `features` of it. `groups`: of the 1x1 convolution; with several,
    channels are shuffled before it.
    """

    kind: ClassVar[str] = "mobile_former_pool"
    features: int
    ratio: int = 6
    groups: int = 1
    to_former: bool = True

    def __post_init__(self) -> None:
        """Refuse empty sizes."""
        if min(self.features, self.ratio, self.groups) < 1:
            raise ValueError(f"features, ratio and groups must be at least 1, got {self}")

    @property
    def label(self) -> str:
        return f"pool {self.features}"

    def _input(self, state: State) -> tuple[Streams, int]:
        """Map and tokens, and the channels that are pooled."""
        source = streams_of(state)
        hidden = source.channels * self.ratio
        check_groups("a 1x1 convolution", self.groups, source.channels)
        return source, hidden

    def output(self, state: State) -> Tokens:
        self._input(state)
        return Tokens(1, self.features, (1, 1))

    def _parts(self, state: State) -> list[Part]:
        source, hidden = self._input(state)
        c, d, n = source.channels, source.width, source.map.positions
        conv, linear = c * hidden // self.groups, (hidden + d) * self.features
        dims: tuple[tuple[str, int], ...] = (("c", c), ("hidden", hidden), ("d", d), ("features", self.features))
        dims += (("groups", self.groups),) if self.groups > 1 else ()
        own = Part(
            Row("mobile_former_pool", n, dims),
            Work(conv * n + linear, conv + 2 * hidden + linear + 3 * self.features),
        )
        return [*([to_former_part(source)] if self.to_former else []), own]

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        self._input(state)
        less = fewer(self.ratio, share)
        return {f"expansion {self.ratio} → {less}": replace(self, ratio=less)} if less < self.ratio else {}

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        if name != "fc.weight":
            return {name: tensor}
        source, hidden = self._input(state)
        return dict(zip(("map", "token"), torch.split_with_sizes(tensor, [hidden, source.width], 1), strict=True))

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        return torch.cat([parts["map"], parts["token"]], 1) if name == "fc.weight" else parts[name]

    def build(self, state: State) -> nn.Module:
        return MobileFormerPoolModule(self, self._input(state)[0])
