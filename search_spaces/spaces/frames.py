"""What all blocks of a ViT share, and pruning may change: the image size, the embedding width, and where patches are dropped, fused or merged."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, TokenPrune
from search_spaces.states import Tokens

__all__ = [
    "PARTS",
    "Frame",
    "Keeps",
    "Plan",
    "at_side",
    "attention_blocks",
    "frames",
    "in_frame",
    "narrowable",
    "whole_frame",
]

PARTS = ("heads", "queries", "values", "neurons", "blocks", "tokens", "fusing", "merging", "width", "resolution")
"""What may be made smaller: patches by dropping some (tokens), by fusing or by merging them."""

GRID = 8  # embedding widths are multiples of it, as kernels like
SIDES = (1.0, 6 / 7, 5 / 7, 4 / 7)  # of the patches along an image
WIDTHS = (1.0, 7 / 8, 3 / 4, 5 / 8)  # of the embedding
THIRDS = (1 / 3, 7 / 12, 5 / 6)  # of the blocks, before which patches are dropped: AS-ViT's 4, 7 and 10 of 12
ONCE = (0.75, 0.6, 0.45, 0.3)  # of the patches that stay, dropped at the first of these places alone
THRICE = (0.85, 0.7, 0.55)  # of the patches that come to a place, dropped at all three
LAST = (0.7, 0.5, 0.3)  # of the patches, left in the end where as many are merged before every block

Keeps = tuple[tuple[int, int], ...]
"""Numbers of blocks, ascending, from 1, and the patches that are left before each."""

Plan = tuple[tuple[int, float], ...]
"""The same by shares of an image's patches, which is alike on images of all sizes."""


@dataclass(frozen=True)
class Frame:
    """A network's image size, its embedding width, and how many patches stay before which block of attention."""

    side: int  # pixels
    width: int  # channels of a token
    keeps: Keeps = ()
    rest: str = "dropped"  # what becomes of the others, see `TokenPrune`
    plan: Plan = field(default=(), compare=False)  # that `keeps` are of, where it is one of `frames`

    @property
    def label(self) -> str:
        """In words."""
        kept = "".join(f", {keep} patches from block {number} on" for number, keep in self.keeps)
        rest = f", others {self.rest}" if self.keeps else ""
        return f"{self.side} pixels, width {self.width}{kept}{rest}"

    @property
    def bare(self) -> "Frame":
        """The frame in which all patches stay."""
        return Frame(self.side, self.width)

    @property
    def scoring(self) -> frozenset[int]:
        """Numbers of the blocks whose attention says which patches stay."""
        return frozenset(number - 1 for number, _ in self.keeps)


def attention_blocks(arch: Arch) -> list[int]:
    """Positions of a ViT's blocks of attention."""
    return [position for position, spec in enumerate(arch.blocks) if isinstance(spec, MB3D)]


def _embedding(arch: Arch) -> Tokens:
    """What the first block of attention gets."""
    state = arch.states[attention_blocks(arch)[0]]
    assert isinstance(state, Tokens)
    return state


def whole_frame(arch: Arch) -> Frame:
    """The frame of a dense ViT."""
    return Frame(arch.image_size, _embedding(arch).channels)


def narrowable(arch: Arch) -> bool:
    """Whether the embedding can be narrower: all that reads it is the LN of a block or of a classifier, all that writes it is linear."""
    head = arch.blocks[-1]
    plain = isinstance(head, Head) and head.norm == "layer" and head.classes > 0
    starts = [position for position, spec in enumerate(arch.blocks) if isinstance(spec, Patch)]
    blocks = arch.blocks[starts[-1] :] if starts else arch.blocks  # a stem before it may be of any kind
    learned = all(spec.form == "learned" for spec in blocks if isinstance(spec, Position))
    return plain and learned and all(isinstance(one, Patch | ClassToken | Position | MB3D | Head) for one in blocks)


def _sides(arch: Arch) -> list[int]:
    """Image sizes, the largest first, that are whole numbers of patches."""
    along = _embedding(arch).grid[0]
    size, rest = divmod(arch.image_size, along)
    if rest or _embedding(arch).grid[1] != along:
        return [arch.image_size]
    return list(dict.fromkeys(size * max(1, round(along * share)) for share in SIDES))


def _widths(arch: Arch) -> list[int]:
    """Widths of the embedding, the largest first."""
    width = _embedding(arch).channels
    return list(dict.fromkeys([width, *(max(GRID, GRID * round(width * share / GRID)) for share in WIDTHS[1:])]))


def _plans(arch: Arch, parts: Collection[str], narrower: bool) -> list[tuple[Plan, str]]:
    """Ways of leaving fewer patches, and what becomes of the others: nothing first; in a narrower network they are dropped alone."""
    blocks = len(attention_blocks(arch))
    places = sorted({round(blocks * share) for share in THIRDS} & {*range(1, blocks)})
    if not places:
        return [((), "dropped")]
    every = range(1, blocks)
    once: list[Plan] = [((places[0], share),) for share in ONCE]
    thrice: list[Plan] = [tuple((place, share**k) for k, place in enumerate(places, 1)) for share in THRICE]
    steps: list[Plan] = [tuple((k, 1 - (1 - share) * k / len(every)) for k in every) for share in LAST]
    # What is fused or merged has no place, which a bias would need.
    placed = narrower or any(spec.bias for spec in arch.blocks if isinstance(spec, MB3D))
    found: list[tuple[Plan, str]] = [((), "dropped")]
    found += [(plan, "dropped") for plan in (*once, *thrice) if "tokens" in parts]
    found += [(plan, "fused") for plan in (*once, *thrice) if "fusing" in parts and not placed]
    return found + [(plan, "merged") for plan in (*thrice, *steps) if "merging" in parts and not placed]


def _kept(plan: Plan, patches: int) -> Keeps:
    """Numbers of patches left before blocks, without those where none goes."""
    counts = [max(1, round(patches * share)) for _, share in plan]
    steps = zip(plan, pairwise([0, *counts]), strict=True)
    return tuple((place, count) for (place, _), (before, count) in steps if count != before)


def _halves(keeps: Keeps, patches: int) -> bool:
    """Whether at least half of the patches that come to each place stay, as merging needs."""
    return all(2 * after >= before for before, after in pairwise([patches, *(keep for _, keep in keeps)]))


def frames(arch: Arch, parts: Collection[str] = PARTS) -> list[Frame]:
    """The frames that a dense ViT may be put in, its own first; those without what is not in `parts`."""
    whole = whole_frame(arch)
    widths = _widths(arch) if "width" in parts and narrowable(arch) else [whole.width]
    found: list[Frame | None] = []
    for side, width in product(_sides(arch) if "resolution" in parts else [whole.side], widths):
        plans = _plans(arch, parts, width < whole.width)
        found += [at_side(arch, Frame(whole.side, width, rest=rest, plan=plan), side) for plan, rest in plans]
    return list(dict.fromkeys(frame for frame in found if frame is not None))


def at_side(arch: Arch, frame: Frame, side: int) -> Frame | None:
    """The frame of a plan at another image size; None where more patches would go at a place than can be merged there."""
    patches = _embedding(arch.at(side)).patches
    keeps = _kept(frame.plan, patches)
    if frame.rest == "merged" and not _halves(keeps, patches):
        return None
    return replace(frame, side=side, keeps=keeps)


def in_frame(arch: Arch, frame: Frame, blocks: Sequence[MB3D] | None = None) -> Arch:
    """A dense ViT in a frame, with other blocks of attention where they are given, whose ratios are of the frame's width.

    Raises:
        ValueError: a block cannot run there.
    """
    positions = attention_blocks(arch)
    before, after = arch.blocks[: positions[0]], arch.blocks[positions[-1] + 1 :]
    if blocks is None:
        share = whole_frame(arch).width / frame.width
        blocks = [replace(spec, ratio=spec.ratio * share) for spec in arch.blocks if isinstance(spec, MB3D)]
    before = tuple(replace(spec, width=frame.width) if isinstance(spec, Patch) else spec for spec in before)
    keeps: Mapping[int, int] = dict(frame.keeps)
    middle: list[BlockSpec] = []
    for number, spec in enumerate(blocks):
        middle += [TokenPrune(keeps[number], rest=frame.rest)] if number in keeps else []
        middle.append(spec)
    return Arch(frame.side, arch.channels, (*before, *middle, *after))
