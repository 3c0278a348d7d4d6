"""Downsampling between stages: a 3x3 stride-2 convolution (EfficientFormer, arXiv 2206.01191; for tokens SReT, 2111.05297)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import Map, State, Tokens

__all__ = ["CONVS", "Embed", "halved"]

CONVS = ("full", "separable", "depthwise")


def halved(state: Map, channels: int) -> Map:
    """The map after a 3x3 stride-2 convolution with padding 1; odd sides round up."""
    return Map(channels, (state.height + 1) // 2, (state.width + 1) // 2)


class EmbedModule(nn.Module):
    """(B, C_in, H, W) -> (B, width, H/2, W/2); tokens (B, N, C_in) are laid out on their grid and come back as tokens."""

    def __init__(self, spec: "Embed", channels: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        if spec.conv == "separable":
            self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
            self.conv = nn.Conv2d(channels, spec.width, 1)
        else:
            groups = channels if spec.conv == "depthwise" else 1
            self.conv = nn.Conv2d(channels, spec.width, 3, stride=2, padding=1, groups=groups)
        self.separable = spec.conv == "separable"
        self.norm = nn.BatchNorm2d(spec.width) if spec.norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is not None:
            x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)
        x = self.conv(self.depthwise(x) if self.separable else x)
        x = x if self.norm is None else self.norm(x)
        return x if self.grid is None else x.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Embed(BlockSpec):
    """Halves each side of a map, or of the grid of tokens, and sets the next stage's `width`.

    conv full: 3x3 over all channels (EfficientFormer). separable: depthwise 3x3, then 1x1, for tokens of any two widths.
    depthwise: 3x3, each channel giving `width / C_in` others (SReT). `norm`: BN after it.
    """

    kind: ClassVar[str] = "embed"
    width: int
    conv: str = "full"
    norm: bool = True

    def __post_init__(self) -> None:
        """Refuse a width below one and an unknown convolution."""
        if self.width < 1:
            raise ValueError(f"embed width must be at least 1, got {self.width}")
        if self.conv not in CONVS:
            raise ValueError(f"embed conv must be one of {', '.join(CONVS)}, got {self.conv!r}")

    def _input(self, state: State) -> Map:
        if not isinstance(state, Map | Tokens):
            raise ValueError(f"an embed takes a map or tokens, got {state}")
        if self.conv == "depthwise" and self.width % state.channels:
            raise ValueError(
                f"a depthwise embed of {state.channels} channels gives a multiple of them, got {self.width}"
            )
        if isinstance(state, Tokens) and (state.pruned or state.prefix):
            raise ValueError("an embed needs every token of the grid and no other, but some were dropped or added")
        return state if isinstance(state, Map) else Map(state.channels, *state.grid)

    def output(self, state: State) -> Map | Tokens:
        out = halved(self._input(state), self.width)
        return out if isinstance(state, Map) else Tokens(out.positions, out.channels, (out.height, out.width))

    @property
    def label(self) -> str:
        return f"{self.width}:"

    def macs(self, state: State) -> int:
        source, out = self._input(state), halved(self._input(state), self.width)
        each = {"full": 9 * source.channels * self.width, "depthwise": 9 * self.width}
        each["separable"] = 9 * source.channels + source.channels * self.width
        return each[self.conv] * out.positions

    def params(self, state: State) -> int:
        channels = self._input(state).channels
        weights = {"full": 9 * channels * self.width, "depthwise": 9 * self.width}
        weights["separable"] = 10 * channels + channels * self.width
        return weights[self.conv] + self.width * (3 if self.norm else 1)

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        dims = (("cin", source.channels), ("c", self.width), *((("bare", 1),) if not self.norm else ()))
        name = "embed" if self.conv == "full" else f"embed.{self.conv}"
        return (Row(name if isinstance(state, Map) else f"{name}.tokens", source.positions, dims),)

    def build(self, state: State) -> nn.Module:
        return EmbedModule(self, self._input(state).channels, state.grid if isinstance(state, Tokens) else None)
