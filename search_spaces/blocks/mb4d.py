"""MB4D, EfficientFormer's convolutional meta-block (arXiv 2206.01191, eq. 3), and its successor (arXiv 2212.08059)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import (
    ConvMlp,
    Residual,
    check_form,
    fewer,
    hidden_width,
    residual_dims,
    residual_params,
)
from search_spaces.states import Map, State

__all__ = ["MB4D", "MIXERS"]

MIXERS = ("pool", "depthwise")


class PoolMixer(nn.Module):
    """The mean of each 3x3 neighbourhood minus the place itself, as the authors released it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(x) - x
        return out


class MB4DModule(nn.Module):
    """(B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, spec: "MB4D", channels: int, hidden: int) -> None:
        super().__init__()
        pooled = spec.mixer == "pool"
        self.token_mixer = PoolMixer() if pooled else None
        self.ls1 = Residual(spec.residual, channels, spec.layer_scale) if pooled else None
        self.mlp = ConvMlp(channels, hidden, depthwise=not pooled)
        self.ls2 = Residual(spec.residual, channels, spec.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None and self.ls1 is not None:
            x = self.ls1(x, self.token_mixer(x))
        out: Tensor = self.ls2(x, self.mlp(x))
        return out


@dataclass(frozen=True)
class MB4D(BlockSpec):
    """Two residual branches on a map: a token mixer without weights, and an FFN with `ratio * C` hidden channels.

    mixer pool: `x + (pool(x) - x)`, then `x + FFN(x)`. mixer depthwise: the FFN alone, with a depthwise 3x3 convolution
    inside. `residual` says how branches join, see `Residual`; `layer_scale` is where its scales start.
    """

    kind: ClassVar[str] = "mb4d"
    ratio: float = 4
    layer_scale: float = 1e-5
    mixer: str = "pool"
    residual: str = "layer_scale"

    def __post_init__(self) -> None:
        """Refuse an unknown mixer or residual form."""
        check_form(self.residual)
        if self.mixer not in MIXERS:
            raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, got {self.mixer!r}")

    @property
    def label(self) -> str:
        return f"4D×{self.ratio:g}" + (" dw" if self.mixer == "depthwise" else "")

    def _input(self, state: State) -> tuple[Map, int]:
        if not isinstance(state, Map):
            raise ValueError(f"MB4D takes a map, so it cannot follow MB3D; got {state}")
        return state, hidden_width(state.channels, self.ratio)

    def output(self, state: State) -> Map:
        return self._input(state)[0]

    def macs(self, state: State) -> int:
        source, hidden = self._input(state)
        middle = 9 * hidden if self.mixer == "depthwise" else 0
        return (2 * source.channels * hidden + middle) * source.positions

    def params(self, state: State) -> int:
        source, hidden = self._input(state)
        joins = residual_params(self.residual, source.channels)
        extra = 12 * hidden if self.mixer == "depthwise" else joins
        return 2 * source.channels * hidden + 3 * (hidden + source.channels) + joins + extra

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        channels, form = ("c", source.channels), residual_dims(self.residual)
        if self.mixer == "depthwise":
            return (Row("mb4d.depthwise", source.positions, (channels, ("hidden", hidden), *form)),)
        return (
            Row("mb4d.pool", source.positions, (channels, *form)),
            Row("mb4d.ffn", source.positions, (channels, ("hidden", hidden), *form)),
        )

    def row_macs(self, state: State) -> tuple[int, ...]:
        return (self.macs(state),) if self.mixer == "depthwise" else (0, self.macs(state))

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        source, hidden = self._input(state)
        less = fewer(hidden, share)
        return {f"FFN width {hidden} → {less}": replace(self, ratio=less / source.channels)} if less < hidden else {}

    def build(self, state: State) -> nn.Module:
        source, hidden = self._input(state)
        return MB4DModule(self, source.channels, hidden)
