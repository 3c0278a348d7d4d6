"""Ways to make a trained ViT faster, for `prune_accuracy.py`: each gives, for a share of the network, one with that much of it left."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch_pruned import Twin, pruned, twin

from compress.dense import network_of
from compress.prune import Prunable
from compress.slicing import BlockSize, weights_of
from compress.uniform import by_magnitude, resized, uniform_sizes
from nas.evaluate import calibration_batches
from nas.pruning.job import Job
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, BlockSpec, TokenPrune
from search_spaces.blocks.token_prune import TokenPruneModule
from search_spaces.spaces.frames import whole_frame
from search_spaces.states import Tokens
from search_spaces.tokens import Kept
from search_spaces.variants import extract_variant

__all__ = ["WAYS", "Source", "at_random"]

SMALLEST_SIDE = 16
ROUND_TO = 2  # channels that Torch-Pruning leaves, as in its example of a ViT: heads of small networks have few
PLACES = (1 / 12, 1 / 3, 2 / 3)  # of the depth, before which tokens are dropped


@dataclass(frozen=True)
class Source:
    """The network that is pruned, and what is learned of it once."""

    job: Job
    prunables: dict[int, Prunable] = field(default_factory=dict)  # by seed

    @property
    def arch(self) -> Arch:
        return self.job.named.arch

    def prunable(self, seed: int) -> Prunable:
        """What the training images that a seed draws tell of the network."""
        if seed not in self.prunables:
            self.prunables[seed] = replace(self.job, seed=seed).prunable()
        return self.prunables[seed]

    @cached_property
    def of_timm(self) -> Twin:
        return twin(self.job.network)


def torch_pruning(source: Source, share: float, seed: int, whole_heads: bool = False) -> Network:
    """Torch-Pruning's default by its Taylor importance, on as many images as ours is calibrated on, and their labels; whole heads, or channels of each."""
    batches = calibration_batches(source.job.data, seed, source.job.images)
    return pruned(source.of_timm, 1 - share, whole_heads=whole_heads, round_to=ROUND_TO, batches=batches).network


def uniform(source: Source, share: float, seed: int) -> Network:
    """Every block alike: the same share of heads and neurons, which ones and what takes over for the others as in ours."""
    dense = source.prunable(seed).dense
    return network_of(*dense.shrunk(alike(source.arch, share), dense.framed(whole_frame(source.arch))))


def magnitude(source: Source, share: float, seed: int) -> Network:
    """The same sizes; what stays is what has the largest weights, as it was."""
    sizes = alike(source.arch, share)
    return network_of(resized(source.arch, sizes), by_magnitude(source.arch, source.job.network.state_dict(), sizes))


def alike(arch: Arch, share: float) -> dict[int, BlockSize]:
    """The size of each block, by position, with at most the share of its heads and neurons; the smallest where all are more."""
    every = list(uniform_sizes(arch))
    return next((sizes for own, sizes in every if own <= share), every[-1][1])


def lower_resolution(source: Source, share: float, seed: int) -> Network:
    """The whole network on smaller images."""
    arch, variants = source.arch, []
    for size in range(arch.image_size, SMALLEST_SIDE - 1, -1):
        try:
            variants.append(arch.at(size))
        except ValueError:  # that is no whole number of patches
            continue
    nearest = min(variants, key=lambda one: abs((one.image_size / arch.image_size) ** 2 - share))
    return extract_variant(source.job.network, arch, nearest).eval()


def dropped_tokens(source: Source, share: float, seed: int) -> Network:
    """Patches dropped at three places, as many of every image, of those that are left the share that attention makes most of."""
    depth = sum(isinstance(spec, MB3D) for spec in source.arch.blocks)
    before = {max(1, round(place * depth)) for place in PLACES}
    blocks: list[BlockSpec] = []
    weights: dict[str, Tensor] = {}
    number, left = 0, 1.0
    for position, (spec, state) in enumerate(source.arch.steps()):
        if isinstance(spec, MB3D):
            if number in before:
                assert isinstance(state, Tokens)
                left *= share
                blocks.append(TokenPrune(max(1, round(left * state.patches))))
            number += 1
        own = weights_of(source.job.network.state_dict(), position)
        weights |= {f"blocks.{len(blocks)}.{name}": tensor for name, tensor in own.items()}
        blocks.append(spec)
    return network_of(replace(source.arch, blocks=tuple(blocks)), weights)


WAYS: dict[str, Callable[[Source, float, int], Network]] = {
    "torch-pruning": torch_pruning,
    "torch-pruning-heads": partial(torch_pruning, whole_heads=True),
    "magnitude": magnitude,
    "uniform": uniform,
    "resolution": lower_resolution,
    "tokens": dropped_tokens,
    "random-tokens": dropped_tokens,  # see `at_random`
}


def at_random(network: Network, seed: int) -> Network:
    """Itself, now keeping random patches wherever it drops some, drawn anew for every batch."""
    generator = torch.Generator().manual_seed(seed)

    def forget(module: nn.Module, given: tuple[Kept]) -> tuple[Kept]:
        scores = given[0].score
        assert scores is not None
        return (replace(given[0], score=torch.rand(scores.shape, generator=generator)),)

    for part in network.modules():
        if isinstance(part, TokenPruneModule):
            part.register_forward_pre_hook(forget)
    return network
