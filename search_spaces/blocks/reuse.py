"""What a later stage of a cascade reuses of the stage before it: features and relations (DVT, arXiv 2105.15075)."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import Mlp, hidden_width
from search_spaces.spread import SpreadPairs, SpreadTokens
from search_spaces.states import Earlier, State, Tokens

__all__ = ["REUSES", "FeatureReuse", "Layer", "Passed", "RelationReuse", "Relations", "Reuse", "Reused"]

REUSES = ("features", "relations")
AT_ONCE = 1024
"""Pairs of tokens whose relations are worked out together on a CPU: hundreds of hidden maps of so many fit a core's cache."""


class Passed(NamedTuple):
    """What a stage gives to the next one."""

    tokens: Tensor | None  # (B, count, C), behind its last transformer block, before any norm; None where nobody asks
    relations: Tensor | None  # (B, blocks x heads, count, count) logits of its attention; None where nobody asks

    def of(self, images: Tensor) -> "Passed":
        """The same of some images, by their numbers or a mask (B,)."""
        tokens, relations = (None if own is None else own[images] for own in self)
        return Passed(tokens, relations)


class Relations(NamedTuple):
    """What attention takes from the stage before, and gives to the next."""

    added: Tensor | None = None  # (B, heads, N, N), to its logits
    told: list[Tensor] | None = None  # where its logits are put, all there is added included


class Layer(NamedTuple):
    """What one block takes from the stage before, and gives to the next."""

    features: Tensor | None = None  # (B, n, C) patches of the stage before
    spread: SpreadTokens | None = None  # by which what it makes of them comes to its own tokens
    added: Tensor | None = None
    told: list[Tensor] | None = None


class Reused(NamedTuple):
    """What a stage makes of what was passed to it."""

    features: Tensor | None  # (B, n, C) patches
    relations: Tensor | None  # (B, maps, count, count), on the grid of the stage before: coarse is where they are small


class FeatureReuse(nn.Module):
    """Patches of the stage before -> (B, N, width) for a block's own tokens: LN, linear, GELU, linear, spread over the grid."""

    def __init__(self, earlier: Earlier, prefix: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(earlier.channels, eps=eps)
        self.mlp = Mlp(earlier.width, earlier.hidden, inputs=earlier.channels)

    def forward(self, patches: Tensor, spread: SpreadTokens) -> Tensor:
        out: Tensor = spread(self.mlp(self.norm(patches)))
        return out


class RelationReuse(nn.Module):
    """Two 1x1 convolutions over the attention maps of a stage, (B, maps, n, n) -> (B, maps of the next, n, n), GELU between.

    They run as matmuls from the left, because a convolution would bring the maps into another layout and back, which takes longer than it;
    without gradients some pairs after the others, so that what lies between stays in cache.
    """

    def __init__(self, maps: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(maps, hidden, 1), nn.Conv2d(hidden, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.flatten(2)
        traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        # Neither autocast nor compilers take operators that write to a part of what is there.
        if torch.is_grad_enabled() or x.is_cuda or traced or torch.is_autocast_enabled(x.device.type):
            found = self._on(self.fc2, F.gelu(self._on(self.fc1, pairs)))
        else:
            found = self._in_parts(pairs)
        return found.reshape(len(x), -1, *x.shape[2:])

    def _in_parts(self, pairs: Tensor) -> Tensor:
        """The same, image by image and `AT_ONCE` pairs at a time."""
        found = pairs.new_empty(len(pairs), self.fc2.out_channels, pairs.shape[2])
        first, second = (layer.weight.flatten(1) for layer in (self.fc1, self.fc2))
        assert self.fc1.bias is not None and self.fc2.bias is not None
        for image, out in zip(pairs, found, strict=True):
            for own, place in zip(image.split(AT_ONCE, 1), out.split(AT_ONCE, 1), strict=True):
                hidden = F.gelu(torch.addmm(self.fc1.bias[:, None], first, own))
                torch.addmm(self.fc2.bias[:, None], second, hidden, out=place)
        return found

    @staticmethod
    def _on(layer: nn.Conv2d, pairs: Tensor) -> Tensor:
        assert layer.bias is not None
        return torch.baddbmm(layer.bias[:, None], layer.weight.flatten(1).expand(len(pairs), -1, -1), pairs)


class ReuseModule(nn.Module):
    """What the stage before passed -> what the blocks of this one reuse."""

    def __init__(self, spec: "Reuse", state: Tokens) -> None:
        super().__init__()
        self.prefix, self.width = spec.prefix, spec.width
        self.relations: RelationReuse | None = None
        self.pairs: SpreadPairs | None = None
        self.tokens = SpreadTokens(spec.side, state.grid, state.prefix) if spec.width else None
        if spec.maps:
            own, out = spec.maps
            self.relations = RelationReuse(own, hidden_width(own, spec.ratio), out)
            self.pairs = SpreadPairs(spec.side, state.grid, (spec.prefix, state.prefix))

    def forward(self, passed: Passed) -> Reused:
        features = None
        if self.width:
            assert passed.tokens is not None
            features = passed.tokens[:, self.prefix :]
        if self.relations is None:
            return Reused(features, None)
        assert passed.relations is not None
        return Reused(features, self.relations(passed.relations))


@dataclass(frozen=True)
class Reuse(BlockSpec):
    """Says what the blocks behind it reuse of a cascade's stage before, and holds what they share of it; the tokens pass unchanged.

    `channels`, `grid` (rows, columns) and `prefix` (leading tokens) are of the stage before. Of its features, every block makes `width` channels
    by `hidden` neurons; 0 for none. `joint`: the MLP's norm is over a token's own channels and these, as in DVT; else over its own alone, which
    then are what they would be without. `maps`: attention maps (blocks x heads) of the stage before, and of the blocks here that reuse them;
    empty for none. `ratio`: hidden over outer maps of the two convolutions.
    """

    kind: ClassVar[str] = "reuse"
    channels: int
    grid: tuple[int, ...]
    prefix: int = 1
    maps: tuple[int, ...] = ()
    width: int = 48
    hidden: int = 128
    joint: bool = True
    ratio: float = 3

    def __post_init__(self) -> None:
        """Refuse what reuses nothing, and sizes that are none."""
        if len(self.grid) != 2 or min(self.channels, *self.grid) < 1 or self.prefix < 0:
            raise ValueError(f"a stage has channels, a grid of two sides and a prefix, got {self}")
        if len(self.maps) not in (0, 2) or min(self.maps, default=1) < 1:
            raise ValueError(f"maps are those of the stage before and of this one, or none, got {self.maps}")
        if self.width < 0 or self.hidden < 1 or self.ratio <= 0:
            raise ValueError(f"width must be at least 0, hidden and ratio above it, got {self}")
        if not self.width and not self.maps:
            raise ValueError("a reuse block without width and maps reuses nothing; leave it out")

    @property
    def label(self) -> str:
        parts = [f"features {self.channels}→{self.width}"] if self.width else []
        parts += [f"relations {self.maps[0]}→{self.maps[1]}"] if self.maps else []
        return f"reuse {', '.join(parts)}"

    @property
    def side(self) -> tuple[int, int]:
        """The grid of the stage before."""
        return self.grid[0], self.grid[1]

    @property
    def count(self) -> int:
        """Tokens of the stage before."""
        return self.prefix + self.grid[0] * self.grid[1]

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Tokens):
            raise ValueError(f"what is reused goes to tokens, got {state}")
        if state.pruned or state.earlier is not None:
            raise ValueError("a stage reuses once, before its first block, and all of its tokens are there")
        return state

    def output(self, state: State) -> Tokens:
        patches = self.count - self.prefix
        hidden = self.hidden if self.width else 0
        earlier = Earlier(self.channels, patches, self.count, self.width, hidden, self.joint, bool(self.maps))
        return replace(self._input(state), scored_by=None, earlier=earlier)

    def macs(self, state: State) -> int:
        """Of the convolutions; spreading is an interpolation, which counts zero."""
        self._input(state)
        if not self.maps:
            return 0
        own, out = self.maps
        return self.count**2 * hidden_width(own, self.ratio) * (own + out)

    def params(self, state: State) -> int:
        self._input(state)
        if not self.maps:
            return 0
        own, out = self.maps
        hidden = hidden_width(own, self.ratio)
        return (own + 1) * hidden + (hidden + 1) * out

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims: tuple[tuple[str, int], ...] = (("c", source.channels), ("cin", self.channels), ("tokens", self.count))
        dims += (("width", self.width),) if self.width else ()
        if not self.maps:
            return (Row("reuse", source.count, dims),)
        own, out = self.maps
        between: tuple[tuple[str, int], ...] = (("maps", own), ("hidden", hidden_width(own, self.ratio)))
        # A row for each map that the second convolution makes, so that stages of fewer blocks and more share rows.
        one = Row("reuse.map", self.count, (("c", source.channels), between[1]))
        return (Row("reuse", source.count, dims + between), *[one] * out)

    def row_macs(self, state: State) -> tuple[int, ...]:
        self._input(state)
        if not self.maps:
            return (0,)
        own, out = self.maps
        one = self.count**2 * hidden_width(own, self.ratio)
        return (own * one, *[one] * out)

    def build(self, state: State) -> nn.Module:
        return ReuseModule(self, self._input(state))
