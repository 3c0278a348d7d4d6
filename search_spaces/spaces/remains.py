"""What may be left of a ViT when parts of its blocks, whole blocks, patches, pixels and channels are removed, and how to time it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, Row, TokenPrune
from search_spaces.blocks.residual import hidden_width
from search_spaces.spaces.frames import PARTS, Frame, attention_blocks, frames, in_frame, whole_frame
from search_spaces.states import Tokens

__all__ = ["PREFIX", "Remains", "Sizes", "check_plain", "key_widths", "neurons", "sizes_in", "widths"]

PREFIX = "remains-"  # of the names, before the dense network's id
GRID = 8  # widths and neurons are multiples of it, as kernels like
WIDTHS, NEURONS = 4, 16  # different widths of a head, and numbers of neurons of a block
CHAIN = 4  # equal blocks in a probe: enough to tell a block's time from the fixed part
ALIKE = 2  # different blocks up to which those of other frames are made smaller too: more would take too many probes
ANCHORS = (0.8, 0.5, 0.25, 0.1)  # of the patches: numbers of those left that are timed, others lie between


def widths(width: int) -> list[int]:
    """Channels of q and k, or of v, that a head may be left with, the most first."""
    step = max(GRID, GRID * round(width / WIDTHS / GRID))
    return [width, *range(step * ((width - 1) // step), 0, -step)]


def key_widths(spec: MB3D) -> list[int]:
    """Channels that q and k of a block may be left with, the most first; those that are normed stay."""
    return [spec.key_dim] if spec.qk_norm else widths(spec.key_dim)


def neurons(hidden: int) -> list[int]:
    """Hidden neurons that a block may be left with, the most first."""
    step = max(GRID, GRID * round(hidden / NEURONS / GRID))
    return [hidden, *range(step * ((hidden - 1) // step), 0, -step)]


@dataclass(frozen=True)
class Sizes:
    """The sizes that a block may get, each from the whole down."""

    heads: tuple[int, ...]
    key_dims: tuple[int, ...]
    value_dims: tuple[int, ...]
    hidden: tuple[int, ...]


def sizes_in(arch: Arch, number: int, frame: Frame, parts: Collection[str] = PARTS) -> Sizes:
    """The sizes that a block may get in a frame: in the dense network's own all, in others half as many, so that they can be timed.

    Blocks that score or compare patches keep heads, values and, where they are merged, keys. Where more than two kinds of blocks are in the network, those of other frames stay
    whole.

    Args:
        arch: a dense ViT.
        number: of the block, among those of attention.
        frame: one of its `frames`.
        parts: of `PARTS`, what may be made smaller.
    """
    asked = frame.rest if number in frame.scoring else None
    return _sizes(arch, number, frame == whole_frame(arch), asked, parts)


def _sizes(arch: Arch, number: int, own: bool, asked: str | None, parts: Collection[str]) -> Sizes:
    """See `sizes_in`; `own`: in the dense network's frame; `asked`: what becomes of the patches that the block scores, if it does."""
    position = attention_blocks(arch)[number]
    spec, state = arch.blocks[position], arch.states[position]
    assert isinstance(spec, MB3D) and isinstance(state, Tokens)
    hidden = hidden_width(state.channels, spec.ratio)
    step = 1 if own else 2 if len(_kinds(arch)) <= ALIKE else None

    def some(values: list[int], part: str) -> tuple[int, ...]:
        return tuple(values[::step]) if part in parts and step else (values[0],)

    heads = range(spec.heads, 0, -1) if "heads" in parts and step and asked is None else [spec.heads]
    values = some(widths(spec.value_dim), "values") if asked is None else (spec.value_dim,)
    keys = some(key_widths(spec), "queries") if asked != "merged" else (spec.key_dim,)
    return Sizes(tuple(heads), keys, values, some(neurons(hidden), "neurons"))


def _kinds(arch: Arch) -> list[MB3D]:
    """Different blocks, each once."""
    return list(dict.fromkeys(spec for spec in arch.blocks if isinstance(spec, MB3D)))


def check_plain(arch: Arch) -> None:
    """Refuse what is no plain ViT.

    Raises:
        ValueError: it has no attention, or not on tokens of which none were dropped, in blocks one after the other without loops or groups.
    """
    positions = attention_blocks(arch)
    blocks = [spec for spec in arch.blocks if isinstance(spec, MB3D)]
    plain = all(spec.loops == 1 and not spec.groups and not spec.nll for spec in blocks)
    together = bool(positions) and positions[-1] - positions[0] + 1 == len(positions)
    on_tokens = all(isinstance(arch.states[i], Tokens) for i in positions)
    if not (plain and together and on_tokens) or arch.locations:
        raise ValueError(
            "it takes a plain ViT, whose blocks of attention follow each other on tokens of which none is dropped, without loops or groups"
        )


class Remains:
    """The networks that a dense ViT may become: fewer heads, narrower q and k or v, fewer neurons, fewer blocks, in one of its `frames`.

    No `Space`: a block that is gone may be any of those that are alike, so a network does not tell its code.
    """

    def __init__(self, arch: Arch, parts: Collection[str] = PARTS) -> None:
        """What may be left of `arch`; only `parts` of it are made smaller.

        Raises:
            ValueError: see `check_plain`.
        """
        check_plain(arch)
        self.arch, self.name, self.classes = arch, PREFIX + arch.id, arch.classes
        self.parts = frozenset(parts)

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """See `frames`."""
        return tuple(frames(self.arch, self.parts))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of every size of every block, and of the other blocks; behind a pruning location of some numbers of patches."""
        return tuple(sorted({row for probe in self.probes() for row in probe.rows}))

    def probes(self) -> tuple[Arch, ...]:
        """Chains of equal blocks in place of the network's, of every form of attention with few neurons, and of every number of neurons."""
        found: dict[Arch, None] = {}
        for side, width in dict.fromkeys((frame.side, frame.width) for frame in self.frames):
            frame = Frame(side, width)
            for number in self._numbers:
                found |= dict.fromkeys(self._chain(frame, chain) for chain in self._chains(number, frame))
        for width, rest in dict.fromkeys((frame.width, frame.rest) for frame in self.frames if frame.keeps):
            found |= dict.fromkeys(self._pruned(width, rest))
        return tuple(found)

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """Of one block of each kind."""
        blocks = [spec for spec in self.arch.blocks if isinstance(spec, MB3D)]
        return tuple(blocks.index(kind) for kind in _kinds(self.arch))

    def _form(self, number: int, frame: Frame, heads: int, key_dim: int, value_dim: int, hidden: int) -> MB3D:
        spec = [one for one in self.arch.blocks if isinstance(one, MB3D)][number]
        return replace(spec, heads=heads, key_dim=key_dim, value_dim=value_dim, ratio=hidden / frame.width)

    def _of(self, number: int, frame: Frame) -> Sizes:
        """The sizes of a block that does not score."""
        return _sizes(self.arch, number, frame == whole_frame(self.arch), None, self.parts)

    def _whole(self, number: int, frame: Frame) -> MB3D:
        sizes = self._of(number, frame)
        return self._form(number, frame, sizes.heads[0], sizes.key_dims[0], sizes.value_dims[0], sizes.hidden[0])

    def _narrow(self, number: int, frame: Frame) -> MB3D:
        sizes = self._of(number, frame)
        return self._form(number, frame, sizes.heads[-1], sizes.key_dims[-1], sizes.value_dims[-1], sizes.hidden[-1])

    def _chains(self, number: int, frame: Frame) -> Iterator[list[MB3D]]:
        """Of every form of attention with few neurons, of every number of neurons, and a single block, which tells what comes once."""
        sizes, narrow = self._of(number, frame), self._narrow(number, frame)
        for heads, key_dim, value_dim in product(sizes.heads, sizes.key_dims, sizes.value_dims):
            yield [replace(narrow, heads=heads, key_dim=key_dim, value_dim=value_dim)] * CHAIN
        for hidden in sizes.hidden:
            yield [replace(narrow, ratio=hidden / frame.width)] * CHAIN
        yield [self._whole(number, frame)]

    def _pruned(self, width: int, rest: str) -> Iterator[Arch]:
        """The chains behind a pruning location for some numbers of patches, with blocks that score before it, on the smallest images that do."""
        sides, least = sorted({frame.side for frame in self.frames}), min(self._anchors)
        for keep, number in product(self._anchors, self._numbers):
            side = next(side for side in sides if self._patches(side) > keep)
            whole, keeps = self._whole(number, Frame(side, width)), self._down(side, keep, rest)
            frame = Frame(side, width, keeps, rest)
            for chain in self._chains(number, frame):
                yield self._chain(frame, [whole] * len(keeps) + chain)
        for side, number in product(sides, self._numbers):  # scoring all patches
            if self._patches(side) > least:
                frame = Frame(side, width, ((1, max(least, self._fewest(self._patches(side), rest))),), rest)
                yield self._chain(frame, [self._whole(number, frame), self._narrow(number, frame)])
        for keep, number in product(self._anchors[:-1], self._numbers):  # scoring what is left of them
            keeps = self._down(sides[-1], keep, rest)
            keeps += ((len(keeps) + 1, max(least, self._fewest(keep, rest))),)
            frame = Frame(sides[-1], width, keeps, rest)
            yield self._chain(frame, [self._whole(number, frame)] * (len(keeps) + 1))

    def _down(self, side: int, keep: int, rest: str) -> tuple[tuple[int, int], ...]:
        """Numbers of patches left before blocks, down to `keep`."""
        counts = [self._patches(side)]
        while counts[-1] > keep:
            counts.append(max(keep, self._fewest(counts[-1], rest)))
        return tuple(enumerate(counts))[1:]

    def _fewest(self, patches: int, rest: str) -> int:
        return TokenPrune(1, rest=rest).least(patches)

    @cached_property
    def _anchors(self) -> tuple[int, ...]:
        """Numbers of patches behind a pruning location that are timed, the most first."""
        patches = self._patches(self.arch.image_size)
        counts = {max(1, min(patches - 1, round(patches * share))) for share in ANCHORS}
        return tuple(sorted(counts, reverse=True))

    def _patches(self, side: int) -> int:
        state = self.arch.at(side).states[attention_blocks(self.arch)[0]]
        assert isinstance(state, Tokens)
        return state.patches

    def _chain(self, frame: Frame, blocks: Sequence[MB3D]) -> Arch:
        """Other blocks between the beginning and the end of the network."""
        return in_frame(self.arch, frame, blocks)

    def sample(self, rng: np.random.Generator) -> Arch:
        """A network with every size of every block drawn uniformly, one of two in another frame; one block of eight is left out."""
        return self._drawn(rng, 0.0)

    def spread(self, rng: np.random.Generator) -> Arch:
        """A network of any cost: a share is drawn, and each size is the dense network's with that probability, else uniform."""
        return self._drawn(rng, rng.random())

    def _drawn(self, rng: np.random.Generator, whole: float) -> Arch:
        own = rng.random() < 0.5
        frame = self.frames[0] if own else self.frames[int(rng.integers(len(self.frames)))]
        blocks: list[MB3D] = []
        last: list[MB3D] = []
        for number in range(len(attention_blocks(self.arch))):
            sizes = sizes_in(self.arch, number, frame, self.parts)

            def one(values: tuple[int, ...]) -> int:
                return values[0] if rng.random() < whole else int(rng.choice(values))

            drawn = one(sizes.heads), one(sizes.key_dims), one(sizes.value_dims), one(sizes.hidden)
            last = [self._form(number, frame, *drawn)]
            gone = rng.random() * 8 < 1 - whole and "blocks" in self.parts and not frame.keeps
            blocks += [] if gone else last
        return self._chain(frame, blocks or last)
