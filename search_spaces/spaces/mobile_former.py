"""The space of Mobile-Formers: resolution, number of tokens, widths, depths and expansions of the map's blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from search_spaces.arch import Arch
from search_spaces.blocks import (
    BlockSpec,
    Head,
    LiteBottleneck,
    MobileFormer,
    MobileFormerEmbed,
    MobileFormerPool,
    SideTokens,
    Stem,
)
from search_spaces.factors import Factor
from search_spaces.space import Choice, Code, Space, by_size
from search_spaces.states import State

__all__ = ["MobileFormers", "Part", "Stage", "mobile_former"]


@dataclass(frozen=True)
class Stage:
    """What one stage may be; choices are only ever appended."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]  # numbers of blocks, that which downsamples left out
    down: bool = True  # whether it begins with one; else its first block changes the width


@dataclass(frozen=True)
class Part:
    """One stage of a network: its width, and the ratio of each block but that which downsamples."""

    width: int
    ratios: tuple[float, ...]


class MobileFormers(Space):
    """Maps through stages of inverted bottlenecks, and a few tokens beside them all the way (Mobile-Former, arXiv 2108.05895).

    Resolution, number of tokens, width of the stem and of the features are chosen for the network; width and depth for each
    stage; expansion for each block. Tokens are always `token_width` wide, and blocks that downsample expand as published.

    Weights: blocks share by their place in the stage. Fewer tokens are the first ones, so token 0, which tells the slopes and is
    classified, is in every network; widths and expansions take leading channels. Resolutions share everything.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, ...],
        tokens: tuple[int, ...],
        token_width: int,
        stems: tuple[int, ...],
        stages: tuple[Stage, ...],
        ratios: tuple[float, ...],
        features: tuple[int, ...],
        classes: int,
    ) -> None:
        """Set the choices.

        Args:
            name: of the space.
            image_size: the resolutions, in pixels.
            tokens: numbers of tokens.
            token_width: channels of a token.
            stems: widths of the stem and of the lite bottleneck behind it.
            stages: what each may be, from a quarter of the image's sides on.
            ratios: hidden channels of a block over those that come in.
            features: widths of what is classified.
            classes: what the networks tell apart.

        Raises:
            ValueError: a stage that does not downsample is the first, may be empty, or has a single width.
        """
        self.name, self.classes, self.head = name, classes, Head(classes, norm="none")
        self.sizes, self.tokens, self.token_width = image_size, tokens, token_width
        self.stems, self.stages, self.ratios, self.features = stems, stages, ratios, features
        if not stages[0].down or any(not s.down and (0 in s.depths or len(s.widths) < 2) for s in stages):
            raise ValueError(
                "a stage that does not downsample comes behind another, has a block or more, and a second width in case that the "
                f"stage before has the first; got {stages}"
            )
        choices = [by_size("resolution", image_size), by_size("tokens", tokens)]
        choices += [by_size("stem", stems), by_size("features", features)]
        for s, stage in enumerate(stages):
            choices += [by_size(f"width{s}", stage.widths), by_size(f"depth{s}", stage.depths)]
            choices += [by_size(f"ratio{s}.{i}", ratios) for i in range(max(stage.depths))]
        self.choices: tuple[Choice, ...] = tuple(choices)

    def fitting(self, s: int, before: int, width: int) -> int:
        """The width of a stage behind one of the width `before`: without a downsampling between them, the next wider where they are equal.

        Otherwise nothing would tell where the stage begins. The widest becomes the next narrower.
        """
        stage = self.stages[s]
        if stage.down or width != before:
            return width
        return min((w for w in stage.widths if w > width), default=max(w for w in stage.widths if w != width))

    def repair(self, code: Code) -> Code:
        """Set the ratios of absent blocks to 0; a stage that does not downsample gets a width of its own, see `fitting`."""
        given = self._clipped(code)
        width = 0
        for s, stage in enumerate(self.stages):
            width = self.fitting(s, width, self._count(given, f"width{s}"))
            given[self._at[f"width{s}"]] = stage.widths.index(width)
            for i in range(self._count(given, f"depth{s}"), max(stage.depths)):
                given[self._at[f"ratio{s}.{i}"]] = 0
        return given

    def _build(self, code: Code) -> Arch:
        parts = [
            Part(
                self._count(code, f"width{s}"),
                tuple(self._number(code, f"ratio{s}.{i}") for i in range(self._count(code, f"depth{s}"))),
            )
            for s in range(len(self.stages))
        ]
        sizes = [self._count(code, name) for name in ("stem", "tokens", "features", "resolution")]
        return self.arch(parts, *sizes)

    def arch(self, parts: Sequence[Part], stem: int, tokens: int, features: int, image_size: int) -> Arch:
        """The network of these parts, one a stage, whose figures need not be among the choices."""
        blocks = self.beginning(stem, tokens)
        for stage, part in zip(self.stages, parts, strict=True):
            blocks += [MobileFormerEmbed(part.width)] if stage.down else []
            blocks += [MobileFormer(part.width, ratio) for ratio in part.ratios]
        return Arch(image_size, 3, (*blocks, MobileFormerPool(features), self.head))

    def beginning(self, stem: int, tokens: int) -> list[BlockSpec]:
        """The blocks before the first stage."""
        first = Stem(stem, convs=1, act="relu6", bias=False)
        return [first, LiteBottleneck(stem), SideTokens(tokens, self.token_width)]

    def _read(self, arch: Arch) -> Code | None:
        values: dict[str, float] = {"resolution": arch.image_size}
        for spec, stage, depth in _staged(arch):
            if isinstance(spec, Stem):
                values["stem"] = spec.width
            elif isinstance(spec, SideTokens):
                values["tokens"] = spec.count
            elif isinstance(spec, MobileFormerPool):
                values["features"] = spec.features
            elif isinstance(spec, MobileFormer | MobileFormerEmbed):
                own = isinstance(spec, MobileFormer)
                values |= {f"ratio{stage}.{depth}": spec.ratio} if own else {}
                values |= {f"width{stage}": spec.width, f"depth{stage}": depth + own}
        return self._coded(values)

    @cached_property
    def size(self) -> int:
        """Number of different networks."""
        blocks = prod(sum(len(self.ratios) ** depth for depth in stage.depths) for stage in self.stages)
        ways = dict.fromkeys(self.stages[0].widths, 1)  # of the widths so far, by the last of them
        for s in range(1, len(self.stages)):
            widths = self.stages[s].widths
            ways = {w: sum(n for before, n in ways.items() if self.fitting(s, before, w) == w) for w in widths}
        whole = len(self.sizes) * len(self.tokens) * len(self.stems) * len(self.features)
        return int(whole * sum(ways.values()) * blocks)

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """A slot for each block of a stage, such as `block2.0`, and one for each of the others."""
        names: list[str] = []
        for spec, stage, depth in _staged(arch):
            if isinstance(spec, MobileFormerEmbed):
                names.append(f"embed{stage}")
            elif isinstance(spec, MobileFormer):
                names.append(f"block{stage}.{depth}")
            elif isinstance(spec, Stem | LiteBottleneck | SideTokens | MobileFormerPool | Head):
                names.append(spec.kind)
            else:
                raise ValueError(f"{self.name} has no slot for a block of kind {spec.kind}")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """The largest network's blocks: no weight belongs to a grid."""
        return self._by_slot(self.largest)

    @cached_property
    def terms(self) -> tuple[Factor, ...]:
        """The beginning, every stage's blocks, the pooling and the head."""
        from search_spaces.spaces.mobile_former_factors import terms

        return tuple(terms(self))

    def probes(self) -> tuple[Arch, ...]:
        """Short networks for every pair of widths, and chains of equal blocks for every width, ratio and number of tokens, at every resolution."""
        from search_spaces.spaces.mobile_former_probes import probes

        return tuple(dict.fromkeys(probes(self)))


def _staged(arch: Arch) -> Iterator[tuple[BlockSpec, int, int]]:
    """Each block, the stage that it or the last one of a stage before it is of, and how many blocks of two streams that has before it.

    A stage begins where the map is made smaller, or where its width changes.
    """
    stage, depth, width = -1, 0, 0
    for spec in arch.blocks:
        if isinstance(spec, MobileFormerEmbed) or (isinstance(spec, MobileFormer) and spec.width != width):
            stage, depth, width = stage + 1, 0, spec.width
        yield spec, stage, depth
        depth += isinstance(spec, MobileFormer)


def mobile_former(classes: int = 1000, image_size: tuple[int, ...] = (224, 160)) -> MobileFormers:
    """Mobile-Former 151M, 214M, 294M and 508M, and what lies between: 1 to 6 tokens of 192, five stages on 56, 28, 14, 14 and 7 places a side."""
    return MobileFormers(
        "mobile_former",
        image_size,
        tokens=(1, 2, 4, 6),
        token_width=192,
        stems=(12, 16, 24),
        stages=(
            Stage((16, 20, 24, 40), (0, 1)),
            Stage((32, 40, 48, 72), (0, 1, 2)),
            Stage((64, 80, 96, 128), (0, 1, 2)),
            Stage((88, 112, 128, 176), (1, 2, 3), down=False),
            Stage((128, 160, 192, 240), (0, 1, 2)),
        ),
        ratios=(3, 4, 6),
        features=(1280, 1600, 1920),
        classes=classes,
    )
