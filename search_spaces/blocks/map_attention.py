"""Attention on a map, then an FFN with a depthwise convolution inside (EfficientFormerV2, arXiv 2212.08059, section 3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import halved
from search_spaces.blocks.grid_attention import ConvNorm, GridAttention
from search_spaces.blocks.mb4d import MB4D
from search_spaces.blocks.residual import ConvMlp, Residual, fewer, hidden_width
from search_spaces.regrid import Grid, offsets
from search_spaces.states import Map, State

__all__ = ["MapAttention"]


class MapMixer(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): attention with talking heads, and beside it a depthwise convolution of the values.

    With `stride` 2 both work on a grid of half the sides, and what they give is upsampled; of odd sides the last row or
    column is cut off, so that each place reads from the same places as it would on a larger map.
    """

    def __init__(self, spec: "MapAttention", source: Map, inner: Map) -> None:
        super().__init__()
        channels, keys, values = source.channels, spec.heads * spec.key_dim, spec.heads * spec.value_dim
        strided = spec.stride == 2
        self.stride_conv = ConvNorm(channels, channels, 3, stride=2, groups=channels) if strided else None
        self.q = ConvNorm(channels, keys)
        self.k = ConvNorm(channels, keys)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, groups=values)
        self.core = GridAttention(spec.heads, spec.key_dim, (inner.height, inner.width), talking=True)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, channels)
        odd = strided and (source.height % 2 or source.width % 2)
        self.sides = (source.height, source.width) if odd else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.stride_conv is None else self.stride_conv(x)
        v = self.v(x)
        x = self.core(self.q(x), self.k(x), v) + self.v_local(v)
        if self.stride_conv is not None:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        if self.sides is not None:
            x = x[:, :, : self.sides[0], : self.sides[1]]
        out: Tensor = self.proj(self.act(x))
        return out


class MapAttentionModule(nn.Module):
    """(B, C, H, W) -> (B, C, H, W); its FFN has the names of MB4D's, whose weights it can share."""

    def __init__(self, spec: "MapAttention", source: Map, inner: Map) -> None:
        super().__init__()
        channels = source.channels
        self.token_mixer = MapMixer(spec, source, inner)
        self.ls1 = Residual("layer_scale", channels, spec.layer_scale)
        self.mlp = ConvMlp(channels, hidden_width(channels, spec.ratio), depthwise=True)
        self.ls2 = Residual("layer_scale", channels, spec.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ls1(x, self.token_mixer(x))
        out: Tensor = self.ls2(x, self.mlp(x))
        return out


@dataclass(frozen=True)
class MapAttention(BlockSpec):
    """`x + s Attention(x)`, then `x + s FFN(x)`, both s learned per channel from `layer_scale`; the FFN is depthwise MB4D's.

    Widths `key_dim` and `value_dim` are per head. `stride` 2: attention works on half the sides and is upsampled.
    """

    kind: ClassVar[str] = "map_attention"
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128
    ratio: float = 4
    layer_scale: float = 1e-5
    stride: int = 1

    def __post_init__(self) -> None:
        """Refuse empty heads and strides other than 1 and 2."""
        if min(self.heads, self.key_dim, self.value_dim) < 1:
            raise ValueError(f"heads and their widths must be at least 1, got {self}")
        if self.stride not in (1, 2):
            raise ValueError(f"attention on a map has stride 1 or 2, got {self.stride}")

    @property
    def label(self) -> str:
        return f"attn×{self.ratio:g}" + (" /2" if self.stride == 2 else "")

    @property
    def _ffn(self) -> MB4D:
        """The block without its attention."""
        return MB4D(self.ratio, self.layer_scale, mixer="depthwise")

    def _input(self, state: State) -> tuple[Map, Map]:
        """The map, and the one that attention works on."""
        if not isinstance(state, Map):
            raise ValueError(f"attention on a map takes a map, so it cannot follow MB3D; got {state}")
        return state, halved(state, state.channels) if self.stride == 2 else state

    def output(self, state: State) -> Map:
        return self._ffn.output(self._input(state)[0])

    def macs(self, state: State) -> int:
        source, inner = self._input(state)
        n, c, values = inner.positions, source.channels, self.heads * self.value_dim
        convs = n * (c * self.heads * (2 * self.key_dim + self.value_dim) + 9 * values)
        convs += 9 * c * n if self.stride == 2 else 0
        pairs = n * n * self.heads * (self.key_dim + self.value_dim + 2 * self.heads)  # with both talking convolutions
        return convs + pairs + source.positions * values * c + self._ffn.macs(state)

    def params(self, state: State) -> int:
        source, inner = self._input(state)
        c, values = source.channels, self.heads * self.value_dim
        convs = (c + 3) * self.heads * (2 * self.key_dim + self.value_dim) + 12 * values + values * c + 3 * c
        convs += 12 * c if self.stride == 2 else 0
        core = self.heads * inner.positions + 2 * self.heads * (self.heads + 1)
        return convs + core + c + self._ffn.params(state)

    def rows(self, state: State) -> tuple[Row, ...]:
        source, inner = self._input(state)
        dims = (("c", source.channels), ("heads", self.heads), ("qk", self.key_dim), ("v", self.value_dim))
        strided = (("places", inner.positions),) if self.stride == 2 else ()
        return (Row("map_attention", source.positions, dims + strided), *self._ffn.rows(state))

    def row_macs(self, state: State) -> tuple[int, ...]:
        ffn = self._ffn.macs(state)
        return self.macs(state) - ffn, ffn

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        ffn = self._ffn.narrower(state, share)
        found: dict[str, BlockSpec] = {
            what: replace(self, ratio=spec.ratio) for what, spec in ffn.items() if isinstance(spec, MB4D)
        }
        for what, field in (("heads", "heads"), ("q/k width", "key_dim"), ("v width", "value_dim")):
            size: int = getattr(self, field)
            less: dict[str, Any] = {field: fewer(size, share)}
            if less[field] < size:
                found[f"{what} {size} → {less[field]}"] = replace(self, **less)
        return found

    def grid_params(self, state: State) -> Mapping[str, str]:
        inner = self._input(state)[1]
        return {"token_mixer.core.attention_biases": f"{inner.height}x{inner.width}"}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        inner = self._input(state)[1]
        return offsets(tensor, source, (inner.height, inner.width))

    def build(self, state: State) -> nn.Module:
        return MapAttentionModule(self, *self._input(state))
