"""The MobileViT block: a transformer on the unfolded map between convolutions (arXiv 2110.02178, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.conv import ConvNormAct
from search_spaces.blocks.mb3d import MB3D
from search_spaces.blocks.residual import fewer, hidden_width
from search_spaces.grouping import inverse, unfolded
from search_spaces.states import Map, State, Tokens

__all__ = ["MobileViT"]

SIDE = 2  # of a patch, in places: those that lie alike in their patches attend to each other


class MobileViTModule(nn.Module):
    """(B, C, H, W) -> (B, C, H, W).

    Odd sides are made even for the transformer: the map is resized to one row or column more, and back, bilinearly, as in the
    authors' release and in timm.
    """

    order: Tensor
    back: Tensor

    def __init__(self, spec: "MobileViT", source: Map, tokens: Tokens) -> None:
        super().__init__()
        channels = source.channels
        self.local = ConvNormAct(channels, channels, 3)
        self.widen = nn.Conv2d(channels, spec.dim, 1, bias=False)
        self.layers = nn.ModuleList(spec.layer.build(tokens) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim)
        self.narrow = ConvNormAct(spec.dim, channels)
        self.fusion = ConvNormAct(2 * channels, channels, 3)
        self.sides, self.grid = (source.height, source.width), tokens.grid
        order = unfolded(tokens.grid, SIDE)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", inverse(order), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self._resized(self.widen(self.local(x)), self.grid)
        tokens = y.flatten(2).transpose(1, 2)[
            :, self.order
        ]  # group after group, as the layers' contiguous cut takes them
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)[:, self.back]
        y = self._resized(tokens.transpose(1, 2).reshape(y.shape), self.sides)
        out: Tensor = self.fusion(torch.cat([x, self.narrow(y)], 1))
        return out

    def _resized(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        return x if self.sides == self.grid else F.interpolate(x, sides, mode="bilinear")


@dataclass(frozen=True)
class MobileViT(BlockSpec):
    """3x3 convolution, 1x1 to `dim` channels, `depth` transformer layers and an LN, 1x1 back; joined to the input by another 3x3.

    Each layer is pre-LN attention of `heads` heads, and an MLP with `ratio * dim` hidden neurons and SiLU. Attention is within
    four groups of tokens, those that lie alike in their 2x2 patches: the strided order of the patches' places.
    """

    kind: ClassVar[str] = "mobilevit"
    dim: int
    depth: int = 2
    heads: int = 4
    ratio: float = 2

    def __post_init__(self) -> None:
        """Refuse an empty transformer, and heads that do not divide its width."""
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise ValueError(
                f"dim, depth and heads must be at least 1, and dim a multiple of heads, got {self.dim}, {self.depth} and "
                f"{self.heads}"
            )

    @property
    def label(self) -> str:
        return f"ViT {self.depth}×{self.dim}"

    @property
    def layer(self) -> MB3D:
        """One layer, on tokens that lie group after group."""
        width = self.dim // self.heads
        return MB3D(
            self.heads,
            width,
            width,
            self.ratio,
            residual="plain",
            bias=False,
            groups=(SIDE * SIDE,),
            orders=("contiguous",),
            mlp="silu",
        )

    def _input(self, state: State) -> tuple[Map, Tokens]:
        """The map, and the tokens that the transformer gets, of sides rounded up to whole patches."""
        if not isinstance(state, Map):
            raise ValueError(f"a MobileViT block takes a map, so it cannot follow MB3D; got {state}")
        height, width = (-(-side // SIDE) * SIDE for side in (state.height, state.width))
        return state, Tokens(height * width, self.dim, (height, width))

    def output(self, state: State) -> Map:
        return self._input(state)[0]

    def _conv_macs(self, state: State) -> int:
        source = self._input(state)[0]
        return source.positions * source.channels * (27 * source.channels + 2 * self.dim)

    def macs(self, state: State) -> int:
        return self._conv_macs(state) + self.depth * self.layer.macs(self._input(state)[1])

    def params(self, state: State) -> int:
        source, tokens = self._input(state)
        c, d = source.channels, self.dim
        return c * (27 * c + 2 * d + 6) + 2 * d + self.depth * self.layer.params(tokens)

    def rows(self, state: State) -> tuple[Row, ...]:
        source, tokens = self._input(state)
        resized = (("tokens", tokens.count),) if tokens.count > source.positions else ()
        dims = (("c", source.channels), ("d", self.dim), *resized)
        return (Row("mobilevit", source.positions, dims), *self.layer.rows(tokens) * self.depth)

    def row_macs(self, state: State) -> tuple[int, ...]:
        return (self._conv_macs(state), *self.layer.row_macs(self._input(state)[1]) * self.depth)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        self._input(state)
        width, hidden = self.dim // self.heads, hidden_width(self.dim, self.ratio)
        less_width, less_hidden, less_depth = (fewer(size, share) for size in (width, hidden, self.depth))
        found: dict[str, BlockSpec] = {}
        if less_depth < self.depth:
            found[f"layers {self.depth} → {less_depth}"] = replace(self, depth=less_depth)
        if less_hidden < hidden:
            found[f"FFN width {hidden} → {less_hidden}"] = replace(self, ratio=less_hidden / self.dim)
        if less_width < width:
            found[f"width of a head {width} → {less_width}"] = replace(self, dim=self.heads * less_width)
        return found

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        if name == "fusion.conv.weight":  # the input's channels, then the transformer's
            return {name: torch.unflatten(tensor, 1, (2, -1))}
        own = _of_layer(name)
        if own is None:
            return {name: tensor}
        pieces = self.layer.split(own, tensor, self._input(state)[1])
        return {name if piece == own else piece: part for piece, part in pieces.items()}

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        if name == "fusion.conv.weight":
            return parts[name].flatten(1, 2)
        own = _of_layer(name)
        if own is None:
            return parts[name]
        pieces = {own if piece == name else piece: part for piece, part in parts.items()}
        return self.layer.join(own, pieces, self._input(state)[1])

    def build(self, state: State) -> nn.Module:
        return MobileViTModule(self, *self._input(state))


def _of_layer(name: str) -> str | None:
    """The name of a layer's parameter in its layer; None for one that is of no layer."""
    return name.split(".", 2)[2] if name.startswith("layers.") else None
