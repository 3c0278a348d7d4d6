"""What all blocks of a ViT share, and pruning may change: the image size, the embedding width, and where patches are dropped."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, Stem, TokenPrune
from search_spaces.states import Tokens

__all__ = ["PARTS", "Frame", "attention_blocks", "frames", "in_frame", "narrowable", "whole_frame"]

PARTS = ("heads", "queries", "values", "neurons", "blocks", "tokens", "width", "resolution")
"""What may be made smaller."""

GRID = 8  # embedding widths are multiples of it, as kernels like
SIDES = (1.0, 6 / 7, 5 / 7, 4 / 7)  # of the patches along an image
WIDTHS = (1.0, 7 / 8, 3 / 4, 5 / 8)  # of the embedding
THIRDS = (1 / 3, 7 / 12, 5 / 6)  # of the blocks, before which patches are dropped: AS-ViT's 4, 7 and 10 of 12
ONCE = (0.75, 0.6, 0.45, 0.3)  # of the patches that stay, dropped at the first of these places alone
THRICE = (0.85, 0.7, 0.55)  # of the patches that come to a place, dropped at all three


@dataclass(frozen=True)
class Frame:
    """A network's image size, its embedding width, and how many patches stay before which block of attention."""

    side: int  # pixels
    width: int  # channels of a token
    keeps: tuple[
        tuple[int, int], ...
    ] = ()  # numbers of blocks, ascending, from 1, and patches that are left before each
    plan: int = field(
        default=0, compare=False
    )  # the way of dropping patches: equal ones leave equal shares of images of all sizes

    @property
    def label(self) -> str:
        """In words."""
        kept = "".join(f", {keep} patches from block {number} on" for number, keep in self.keeps)
        return f"{self.side} pixels, width {self.width}{kept}"

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
    learned = all(spec.form == "learned" for spec in arch.blocks if isinstance(spec, Position))
    known = Stem | Patch | ClassToken | Position | MB3D | Head
    return plain and learned and all(isinstance(one, known) for one in arch.blocks)


def _sides(arch: Arch) -> list[int]:
    """Image sizes, the largest first, that are whole numbers of patches."""
    along = _embedding(arch).grid[0]
    size = arch.image_size // along
    return list(dict.fromkeys(size * max(1, round(along * share)) for share in SIDES))


def _widths(arch: Arch) -> list[int]:
    """Widths of the embedding, the largest first."""
    width = _embedding(arch).channels
    return list(dict.fromkeys([width, *(max(GRID, GRID * round(width * share / GRID)) for share in WIDTHS[1:])]))


def _keeps(blocks: int, patches: int) -> list[tuple[tuple[int, int], ...]]:
    """Ways of dropping patches in a ViT of so many blocks, none first."""
    places = sorted({round(blocks * share) for share in THIRDS} & {*range(1, blocks)})
    found: list[tuple[tuple[int, int], ...]] = [()]
    if places:
        found += [((places[0], max(1, round(patches * share))),) for share in ONCE]
        counts = [[max(1, round(patches * share**k)) for k in range(1, len(places) + 1)] for share in THRICE]
        found += [tuple(zip(places, count, strict=True)) for count in counts]
    return found


def frames(arch: Arch, parts: Collection[str] = PARTS) -> list[Frame]:
    """The frames that a dense ViT may be put in, its own first; those without what is not in `parts`."""
    whole = whole_frame(arch)
    widths = _widths(arch) if "width" in parts and narrowable(arch) else [whole.width]
    found = []
    for side, width in product(_sides(arch) if "resolution" in parts else [whole.side], widths):
        patches = _embedding(arch.at(side)).patches
        plans = _keeps(len(attention_blocks(arch)), patches) if "tokens" in parts else [()]
        found += [Frame(side, width, keeps, plan) for plan, keeps in enumerate(plans)]
    return list(dict.fromkeys(found))


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
        middle += [TokenPrune(keeps[number])] if number in keeps else []
        middle.append(spec)
    return Arch(frame.side, arch.channels, (*before, *middle, *after))
