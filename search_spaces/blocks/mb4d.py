"""MB4D, EfficientFormer's convolutional meta-block: average-pool mixer and 1x1-convolution FFN (arXiv 2206.01191, eq. 3)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import ConvMlp, LayerScale, hidden_width
from search_spaces.states import Map, State

__all__ = ["MB4D"]


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

    def __init__(self, channels: int, hidden: int, layer_scale: float) -> None:
        super().__init__()
        self.token_mixer = PoolMixer()
        self.ls1 = LayerScale(channels, layer_scale)
        self.mlp = ConvMlp(channels, hidden)
        self.ls2 = LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.token_mixer(x))
        out: Tensor = x + self.ls2(self.mlp(x))
        return out


@dataclass(frozen=True)
class MB4D(BlockSpec):
    """`x + ls1 (pool(x) - x)`, then `x + ls2 FFN(x)` with `ratio * C` hidden channels; both scales start at `layer_scale`."""

    kind: ClassVar[str] = "mb4d"
    ratio: float = 4
    layer_scale: float = 1e-5

    def _input(self, state: State) -> tuple[Map, int]:
        if not isinstance(state, Map):
            raise ValueError(f"MB4D takes a map, so it cannot follow MB3D within a stage; got {state}")
        return state, hidden_width(state.channels, self.ratio)

    def output(self, state: State) -> Map:
        return self._input(state)[0]

    def macs(self, state: State) -> int:
        source, hidden = self._input(state)
        return 2 * source.channels * hidden * source.positions

    def params(self, state: State) -> int:
        source, hidden = self._input(state)
        return 2 * source.channels * hidden + 3 * (hidden + source.channels) + 2 * source.channels

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        channels = ("c", source.channels)
        return (
            Row("mb4d.pool", source.positions, (channels,)),
            Row("mb4d.ffn", source.positions, (channels, ("hidden", hidden))),
        )

    def build(self, state: State) -> nn.Module:
        source, hidden = self._input(state)
        return MB4DModule(source.channels, hidden, self.layer_scale)
