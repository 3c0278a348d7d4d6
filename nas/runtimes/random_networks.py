"""Networks to be timed, which nobody trained, and the images they are timed on."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.thresholds import calibrate
from search_spaces.arch import Arch, Network

__all__ = ["fixed_images", "random_network"]

SPREAD = 0.01  # of what is added to fresh weights


def fixed_images(shape: Sequence[int]) -> NDArray[np.float32]:
    """What a session of a network that takes images of this shape is timed on."""
    return np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)


def random_network(arch: Arch, images: Tensor) -> Network:
    """The network with weights that differ everywhere: what works on equal weights, such as biases of 0, would be merged.

    Where it has thresholds, exactly `keep` patches of the one image stay at each location.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # equal graphs on every run
        network = arch.build()
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=SPREAD)
    if arch != arch.keeping(adaptive=False):
        assert len(images) == 1, "targets of larger batches refuse thresholds"
        calibrate(network, arch, [(images, torch.zeros(1))])
    return network
