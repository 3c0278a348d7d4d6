"""A network that takes images normalised in another way, with the same logits."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from search_spaces.arch import Network
from search_spaces.blocks import Normalise, Patch
from search_spaces.cascade import Cascade

__all__ = ["seeing"]


@torch.no_grad()
def seeing(
    network: Network, mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
) -> Network:
    """The network for images that are normalised by `new_mean` and `new_std`, not by `mean` and `std`, in eval mode.

    Patches that add no border overlap with nothing, so the difference goes into the weights of the first layer, and into its
    bias, which it gets where it has none. Any other network gets a block before its first that normalises: what a convolution
    pads with would not fit a bias.

    Raises:
        ValueError: another number of channels is given, or the network is a cascade.
    """
    if isinstance(network.arch, Cascade):
        raise ValueError("a cascade's stages each see the images; normalise them before it")
    given = [torch.tensor(values, dtype=torch.float64) for values in (mean, std, new_mean, new_std)]
    if any(len(values) != network.arch.channels for values in given):
        raise ValueError(f"the network takes {network.arch.channels} channels, each with a mean and a deviation")
    was, spread, now, now_spread = given
    first = network.arch.blocks[0]
    if not isinstance(first, Patch) or first.padding:
        return _behind(network, Normalise(_plain((was - now) / now_spread), _plain(spread / now_spread)))
    arch = replace(network.arch, blocks=(replace(first, bias=True), *network.arch.blocks[1:]))
    found, weights = arch.build(), dict(network.state_dict())
    weight = weights["blocks.0.proj.weight"].double()
    bias = weights.get("blocks.0.proj.bias", weight.new_zeros(len(weight))).double()
    offset = ((now - was) / spread)[:, None, None] * weight
    weights["blocks.0.proj.weight"] = (weight * (now_spread / spread)[:, None, None]).float()
    weights["blocks.0.proj.bias"] = (bias + offset.sum((1, 2, 3))).float()
    found.load_state_dict(weights)
    return found.eval()


def _behind(network: Network, block: Normalise) -> Network:
    """The network with a block, which has no weights, before its first."""
    found = replace(network.arch, blocks=(block, *network.arch.blocks)).build()
    weights = [(name.split(".", 2), weight) for name, weight in network.state_dict().items()]
    found.load_state_dict({f"blocks.{int(place) + 1}.{name}": weight for (_, place, name), weight in weights})
    return found.eval()


def _plain(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
