"""The space of MobileViTs: stage widths, expansions, and widths and depths of the transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec, Conv, Head, InvertedResidual, MobileViT, Row
from search_spaces.factors import Factor, Factors, in_a_row
from search_spaces.space import Code, Space, by_size
from search_spaces.states import Map, State

__all__ = ["MobileViTs", "Part", "mobilevit"]

STEM = 16  # channels of the first convolution
RESIDUALS = (1, 3, 1, 1, 1)  # inverted residuals of each stage
FEATURES = 4  # times the last width: channels that are classified


@dataclass(frozen=True)
class Part:
    """One stage, spelled out."""

    width: int
    expand: float
    dim: int = 0  # of its transformer; 0 without one
    depth: int = 1  # layers of its transformer
    repeats: int = 1  # MobileViT blocks; more than one in probes alone


class MobileViTs(Space):
    """MobileViTs (arXiv 2110.02178): five stages of inverted residuals, of which the last end in a MobileViT block.

    Chosen are the resolution, and for each stage its width, how far its inverted residuals expand, and width and number of
    layers of its transformer.

    Weights: blocks share by their place, layers of a transformer by their place from the first. Widths, expansions and the heads
    of attention take leading channels; all resolutions share everything.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, ...],
        widths: tuple[tuple[int, ...], ...],
        expands: tuple[float, ...],
        dims: tuple[tuple[int, ...], ...],
        depths: tuple[tuple[int, ...], ...],
        classes: int,
    ) -> None:
        """Set the choices.

        Args:
            name: of the space.
            image_size: the resolutions, in pixels.
            widths: channels that each of the five stages may have.
            expands: hidden channels of an inverted residual over those of its input.
            dims: channels that the transformers of the last stages may have, one for each of these.
            depths: numbers of layers of each.
            classes: what the networks tell apart.

        Raises:
            ValueError: there are other than five stages, more transformers than stages, or not as many depths as dims.
        """
        if len(widths) != len(RESIDUALS) or not 0 < len(dims) == len(depths) <= len(RESIDUALS):
            raise ValueError(
                f"a MobileViT has {len(RESIDUALS)} stages, and dims and depths for the last of them; got {len(widths)} widths, "
                f"{len(dims)} dims and {len(depths)} depths"
            )
        self.name, self.classes, self.sizes = name, classes, image_size
        self.widths, self.expands = widths, expands
        first = len(widths) - len(dims)  # stage with a transformer
        self.dims, self.depths = dict(enumerate(dims, first)), dict(enumerate(depths, first))
        self.stem, self.head = Conv(STEM, stride=2), Head(classes, norm="none")
        choices = [by_size("resolution", image_size)]
        for s, own in enumerate(widths):
            choices += [by_size(f"width{s}", own), by_size(f"expand{s}", expands)]
        for s in self.dims:
            choices += [by_size(f"dim{s}", self.dims[s]), by_size(f"depth{s}", self.depths[s])]
        self.choices = tuple(choices)

    def residuals(self, s: int, width: int, expand: float) -> tuple[BlockSpec, ...]:
        """The inverted residuals of a stage."""
        first = InvertedResidual(width, 2 if s else 1, expand)
        return (first, *[InvertedResidual(width, 1, expand)] * (RESIDUALS[s] - 1))

    def tail(self, width: int) -> tuple[BlockSpec, ...]:
        """What follows a last stage of this width."""
        return Conv(FEATURES * width, 1), self.head

    def arch(self, parts: Sequence[Part], image_size: int | None = None) -> Arch:
        """The network of parts, one a stage, whose figures need not be among the choices; of the largest image size unless told."""
        blocks: list[BlockSpec] = [self.stem]
        for s, part in enumerate(parts):
            blocks += self.residuals(s, part.width, part.expand)
            blocks += [MobileViT(part.dim, part.depth)] * part.repeats if part.dim else []
        return Arch(image_size or max(self.sizes), 3, (*blocks, *self.tail(parts[-1].width)))

    def repair(self, code: Code) -> Code:
        """Bring values into range: every position matters in every network."""
        return self._clipped(code)

    def _build(self, code: Code) -> Arch:
        parts = []
        for s in range(len(self.widths)):
            part = Part(self._count(code, f"width{s}"), self._number(code, f"expand{s}"))
            if s in self.dims:
                part = replace(part, dim=self._count(code, f"dim{s}"), depth=self._count(code, f"depth{s}"))
            parts.append(part)
        return self.arch(parts, self._count(code, "resolution"))

    def _read(self, arch: Arch) -> Code | None:
        values: dict[str, float] = {"resolution": arch.image_size}
        for (stage, number), spec in zip(_places(arch), arch.blocks, strict=True):
            if isinstance(spec, InvertedResidual) and number == 0:
                values |= {f"width{stage}": spec.width, f"expand{stage}": spec.expand}
            elif isinstance(spec, MobileViT):
                values |= {f"dim{stage}": spec.dim, f"depth{stage}": spec.depth}
        return self._coded(values)

    @cached_property
    def size(self) -> int:
        """Number of different networks: every code is one."""
        return prod(len(choice.values) for choice in self.choices)

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """A slot for each block by its stage and place, such as `stage1.residual2` and `stage4.mobilevit1`."""
        kinds = {"inverted_residual": "residual", "mobilevit": "mobilevit"}
        names: list[str] = []
        for (stage, number), spec in zip(_places(arch), arch.blocks, strict=True):
            if spec.kind in kinds:
                names.append(f"stage{stage}.{kinds[spec.kind]}{number}")
            elif isinstance(spec, Conv):
                names.append("features" if names else "stem")
            elif isinstance(spec, Head):
                names.append("head")
            else:
                raise ValueError(f"{self.name} has no slot for a block of kind {spec.kind}")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """The largest network's blocks: no weight belongs to a grid."""
        return self._by_slot(self.largest)

    @cached_property
    def terms(self) -> tuple[Factor, ...]:
        """The stem, the inverted residuals and the transformer of each stage, and what follows the last."""
        factors, found = Factors(self.choices), list[Factor]()
        state = factors.derive(lambda size: Map(3, size, size), factors["resolution"])
        found.append(factors.derive(self.stem.rows, state))
        state = factors.derive(self.stem.output, state)
        for s in range(len(self.widths)):
            residuals = factors.derive(partial(self.residuals, s), factors[f"width{s}"], factors[f"expand{s}"])
            found.append(factors.derive(_rows, residuals, state))
            state = factors.derive(_behind, residuals, state)
            if s in self.dims:
                transformer = factors.derive(_transformer, factors[f"dim{s}"], factors[f"depth{s}"])
                found.append(factors.derive(_rows, transformer, state))
        found.append(factors.derive(lambda state: _rows(self.tail(state.channels), state), state))
        return tuple(found)

    def probes(self) -> tuple[Arch, ...]:
        """Small networks that differ in neighbouring widths, and chains of MobileViT blocks and of their layers."""
        from search_spaces.spaces.mobilevit_probes import probes

        return tuple(dict.fromkeys(self.arch(parts, size) for size in self.sizes for parts in probes(self)))


def _places(arch: Arch) -> list[tuple[int, int]]:
    """The stage of each block, -1 before the first, and its number among the blocks of a stage."""
    found: list[tuple[int, int]] = []
    stage, number = -1, 0
    for spec in arch.blocks:
        if isinstance(spec, InvertedResidual) and (stage < 0 or spec.stride == 2):
            stage, number = stage + 1, 0
        found.append((stage, number))
        number += 1
    return found


def _transformer(dim: int, depth: int) -> tuple[BlockSpec, ...]:
    return (MobileViT(dim, depth),)


def _behind(blocks: Sequence[BlockSpec], state: State) -> State:
    """The state that blocks in a row give."""
    return in_a_row(blocks, state)[0]


def _rows(blocks: Sequence[BlockSpec], state: State) -> tuple[Row, ...]:
    """The rows of blocks in a row."""
    return in_a_row(blocks, state)[1]


def mobilevit(classes: int = 1000, image_size: tuple[int, ...] = (256, 192)) -> MobileViTs:
    """MobileViT-XXS, XS and S, and what lies between and below."""
    return MobileViTs(
        "mobilevit",
        image_size=image_size,
        widths=((16, 32), (24, 48, 64), (48, 64, 96), (64, 80, 128), (80, 96, 160)),
        expands=(2, 4),
        dims=((64, 96, 144), (80, 120, 192), (96, 144, 240)),
        depths=((1, 2), (1, 2, 3, 4), (1, 2, 3)),
        classes=classes,
    )
