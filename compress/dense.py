"""A trained ViT before anything is removed, what some images tell of it, and the same network in other frames."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.narrowing import Narrowing, narrowings
from compress.slicing import BlockSize, Plan, plan_block, shrink, shrink_block, weights_of
from compress.statistics import BlockMoments, collect
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.spaces.frames import Frame, attention_blocks, frames, in_frame, whole_frame
from search_spaces.states import Tokens
from search_spaces.variants import variant_state

__all__ = ["Dense", "Framed", "Sizes", "Statistics", "compared", "examined", "network_of", "plans_of"]

FEW, FEWEST, FEW_TOKENS = 64, 24, 4_700  # images that what a part is worth is told by: as many as hold so many tokens
TOKENS = 17_000  # of the images that candidates are compared on: where each has many, fewer images tell as much

Sizes = Mapping[int, BlockSize | None]
"""What becomes of blocks, by their positions in the dense network; None where one is left out."""

Statistics = tuple[Mapping[int, BlockMoments], Mapping[int, Plan]]
"""Moments and plans of blocks, by their positions in a frame's network."""


@dataclass(frozen=True)
class Framed:
    """The network in a frame, its blocks whole."""

    frame: Frame
    arch: Arch
    weights: Mapping[str, Tensor]
    places: Mapping[int, int]  # positions of blocks here, by those in the dense network


@dataclass(frozen=True)
class Dense:
    """The network before anything is removed, and what is known of it."""

    arch: Arch
    weights: Mapping[str, Tensor]
    moments: Mapping[int, BlockMoments]
    plans: Mapping[int, Plan]
    images: Tensor
    scores: Tensor  # of the images
    before: Mapping[int, Tensor]  # what goes into each block of attention, of the first few images
    narrowings: Mapping[int, Narrowing]  # by width
    _framed: dict[Frame, Framed] = field(default_factory=dict, init=False, repr=False, compare=False)
    _blocks: dict[int, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def few(self) -> int:
        """Images that what a part is worth is told by."""
        return min(FEW, max(FEWEST, FEW_TOKENS // _tokens(self.arch)))

    def framed(self, frame: Frame) -> Framed:
        """The network in a frame."""
        if frame not in self._framed:
            self._framed[frame] = self._in(frame)
        return self._framed[frame]

    def _in(self, frame: Frame) -> Framed:
        whole, positions = whole_frame(self.arch), attention_blocks(self.arch)
        if frame == whole:
            return Framed(frame, self.arch, self.weights, {position: position for position in positions})
        if frame.keeps:
            bare = self.framed(frame.bare)
            arch = in_frame(self.arch, frame)
            places = dict(zip(positions, attention_blocks(arch), strict=True))
            weights: dict[str, Tensor] = {}
            for source, place in enumerate(_others(arch)):
                own = weights_of(bare.weights, source)
                weights |= {f"blocks.{place}.{name}": one for name, one in own.items()}
            return Framed(frame, arch, weights, places)
        if frame.side != whole.side:
            large = self.framed(replace(frame, side=whole.side))
            arch = large.arch.at(frame.side)
            return Framed(frame, arch, variant_state(large.weights, large.arch, arch), large.places)
        arch, own_weights = self.narrowings[frame.width](self.arch, self.weights)
        return Framed(frame, arch, own_weights, {position: position for position in positions})

    def shrunk(
        self, sizes: Sizes, framed: Framed, statistics: Statistics | None = None
    ) -> tuple[Arch, dict[str, Tensor]]:
        """The network in a frame with blocks of other sizes, by the frame's own statistics, or by the dense network's."""
        places = framed.places
        moments, plans = statistics or (
            {places[position]: one for position, one in self.moments.items()},
            {places[position]: one for position, one in self.plans.items()},
        )
        here = {places[position]: size for position, size in sizes.items()}
        return shrink(framed.arch, framed.weights, moments, plans, here)

    def divergence(
        self, arch: Arch, weights: Mapping[str, Tensor], first: int | None = None, last: int | None = None
    ) -> float:
        """Mean over the images, or the first or last of them, of how far a network's class probabilities are from the dense one's."""
        chosen = slice(first) if last is None else slice(-last, None)
        found = _scores(network_of(arch, weights), resized(self.images[chosen], arch.image_size))
        return self._apart(found, self.scores[chosen])

    @torch.no_grad()
    def divergence_of(self, position: int, size: BlockSize | None) -> float:
        """The same on the first few images where one block alone has another size."""
        x = self.before[position]
        if size is not None:
            spec, state = self.arch.blocks[position], self.arch.states[position]
            assert isinstance(spec, MB3D)
            own = weights_of(self.weights, position)
            smaller, changed = shrink_block(spec, own, self.moments[position], self.plans[position], size)
            block = smaller.build(state).eval()
            block.load_state_dict(changed)
            x = block(x)
        for after in range(position + 1, len(self.arch.blocks)):
            x = self._block(after)(x)
        return self._apart(x, self.scores[: len(x)])

    def _block(self, position: int) -> nn.Module:
        if position not in self._blocks:
            spec, state = self.arch.blocks[position], self.arch.states[position]
            block = spec.build(state).eval()
            block.load_state_dict(weights_of(self.weights, position))
            self._blocks[position] = block
        return self._blocks[position]

    def _apart(self, found: Tensor, wanted: Tensor) -> float:
        if self.arch.encoder:  # its features are compared in place of class probabilities
            return float((found - wanted).square().sum() / wanted.square().sum())
        return float(F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True))


def _others(arch: Arch) -> list[int]:
    """Positions of the blocks that drop no patches."""
    return [position for position in range(len(arch.blocks)) if position not in arch.locations]


def network_of(arch: Arch, weights: Mapping[str, Tensor]) -> Network:
    """The network with these weights, in eval mode."""
    network = arch.build().eval()
    network.load_state_dict(dict(weights))
    return network


@torch.no_grad()
def _scores(network: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, batch)])


@torch.no_grad()
def _inputs(network: Network, images: Tensor) -> dict[int, Tensor]:
    """What goes into each block of attention."""
    found, x = {}, images
    for position, (spec, block) in enumerate(zip(network.arch.blocks, network.blocks, strict=True)):
        if isinstance(spec, MB3D):
            found[position] = x
        x = block(x)
    return found


def examined(
    arch: Arch,
    weights: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    count: int,
    parts: Collection[str],
    progress: Callable[[str], None] = lambda what: None,
) -> Dense:
    """What some images tell of a network.

    Args:
        arch: a dense ViT.
        weights: of it.
        batches: of images (B, channels, H, W), all of which tell moments; they are gone through once.
        count: of the images that networks are compared on, the first, which stay in memory; see `compared`.
        parts: of `search_spaces.spaces.frames.PARTS`, what may be made smaller.
        progress: is told what is done next.

    Raises:
        InputError: the scores are not finite.
    """
    network, left = network_of(arch, weights), iter(batches)
    first: list[Tensor] = []
    while sum(map(len, first)) < count and (batch := next(left, None)) is not None:
        first.append(batch)
    images = torch.cat(first)[:count]
    progress("scores of the images")
    scores = _scores(network, images)
    if not torch.isfinite(scores).all():
        raise InputError("the network's scores on these images are not finite; check how they are normalised")
    progress("statistics")
    moments = collect(network, chain(first, left))
    plans = plans_of(arch, weights, moments)
    narrow = sorted({frame.width for frame in frames(arch, parts)} - {whole_frame(arch).width})
    progress("narrower embeddings")
    dense = Dense(arch, weights, moments, plans, images, scores, {}, {})
    few = images[: dense.few]
    found = narrowings(network, torch.split(few, 32), narrow) if narrow else {}
    return replace(dense, before=_inputs(network, few), narrowings=found)


def compared(arch: Arch, count: int) -> int:
    """How many of `count` images candidates are compared on: so many tokens tell enough."""
    return min(count, max(FEWEST, TOKENS // _tokens(arch)))


def _tokens(arch: Arch) -> int:
    """Of each image, in the first block of attention."""
    state = arch.states[attention_blocks(arch)[0]]
    assert isinstance(state, Tokens)
    return state.count


def plans_of(arch: Arch, weights: Mapping[str, Tensor], moments: Mapping[int, BlockMoments]) -> dict[int, Plan]:
    """In which order parts of each block go, by its position."""
    found = {}
    for position, own in moments.items():
        spec = arch.blocks[position]
        assert isinstance(spec, MB3D)
        found[position] = plan_block(spec, weights_of(weights, position), own)
    return found
