"""Downsampling on two paths, a convolution and attention (EfficientFormerV2, arXiv 2212.08059, section 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.embed import Embed, halved
from search_spaces.blocks.grid_attention import ConvNorm, GridAttention
from search_spaces.regrid import Grid, offsets
from search_spaces.states import Map, State

__all__ = ["AttentionEmbed"]


class DownAttention(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/2, W/2): every second place is a query, all places are keys.

    A query is the place itself and a depthwise convolution around it, projected.
    """

    def __init__(self, spec: "AttentionEmbed", source: Map) -> None:
        super().__init__()
        channels, keys, values = source.channels, spec.heads * spec.key_dim, spec.heads * spec.value_dim
        self.local = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.q = ConvNorm(channels, keys)
        self.k = ConvNorm(channels, keys)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, stride=2, groups=values)
        self.core = GridAttention(spec.heads, spec.key_dim, (source.height, source.width), stride=2)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        places = F.avg_pool2d(x, 1, stride=2)  # every second place; a slice would leave ONNX Runtime's blocked layout
        mixed = self.core(self.q(self.local(x) + places), self.k(x), v) + self.v_local(v)
        out: Tensor = self.proj(self.act(mixed))
        return out


class AttentionEmbedModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/2, W/2); its convolution has the names of Embed's, whose weights it can share."""

    def __init__(self, spec: "AttentionEmbed", source: Map) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source.channels, spec.width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(spec.width)
        self.attention = DownAttention(spec, source)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x) + self.norm(self.conv(x))
        return out


@dataclass(frozen=True)
class AttentionEmbed(BlockSpec):
    """Halves each side of a map and sets the next stage's `width`: Embed's convolution and attention, added.

    Widths `key_dim` and `value_dim` are per head.
    """

    kind: ClassVar[str] = "attention_embed"
    width: int
    heads: int = 8
    key_dim: int = 16
    value_dim: int = 64

    def __post_init__(self) -> None:
        """Refuse empty heads and an empty output."""
        if min(self.width, self.heads, self.key_dim, self.value_dim) < 1:
            raise ValueError(f"width, heads and their widths must be at least 1, got {self}")

    @property
    def label(self) -> str:
        return f"{self.width} attn:"

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"an embed with attention takes a map, so it cannot follow MB3D; got {state}")
        return state

    def output(self, state: State) -> Map:
        return halved(self._input(state), self.width)

    def macs(self, state: State) -> int:
        source, out = self._input(state), self.output(state)
        c, keys, values = source.channels, self.heads * self.key_dim, self.heads * self.value_dim
        queries = out.positions * (9 * c + c * keys + 9 * values + values * self.width)
        pairs = out.positions * source.positions * (keys + values)
        return queries + source.positions * c * (keys + values) + pairs + Embed(self.width).macs(state)

    def params(self, state: State) -> int:
        source = self._input(state)
        c, keys, values = source.channels, self.heads * self.key_dim, self.heads * self.value_dim
        convs = 10 * c + (c + 3) * (2 * keys + values) + 12 * values + (values + 3) * self.width
        return convs + self.heads * source.positions + Embed(self.width).params(state)

    def rows(self, state: State) -> tuple[Row, ...]:
        source, out = self._input(state), self.output(state)
        widths = (("heads", self.heads), ("qk", self.key_dim), ("v", self.value_dim))
        dims = (("cin", source.channels), ("c", self.width), *widths, ("places", out.positions))
        return (Row("attention_embed", source.positions, dims),)

    def grid_params(self, state: State) -> Mapping[str, str]:
        source = self._input(state)
        return {"attention.core.attention_biases": f"{source.height}x{source.width}"}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        own = self._input(state)
        return offsets(tensor, source, (own.height, own.width))

    def build(self, state: State) -> nn.Module:
        return AttentionEmbedModule(self, self._input(state))
