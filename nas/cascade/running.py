"""Running a cascade for real: what leaves at an exit is not in the batches of the stages behind it."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data import Data, Split
from search_spaces.blocks.reuse import Passed
from search_spaces.cascade import CascadeNetwork

__all__ = ["BATCH", "every_exit", "run_early"]

BATCH = 64  # images at a time: maps of relations are large


@torch.no_grad()
def run_early(network: CascadeNetwork, images: Tensor, thresholds: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) of the exit that each image leaves at, and the number of that exit (B,).

    Args:
        network: in eval mode.
        images: (B, channels, H, W).
        thresholds: (exits - 1,); see `nas.cascade.thresholds`.
    """
    exits = len(network.parts)
    logits = images.new_zeros(len(images), network.arch.classes)
    taken = torch.full((len(images),), exits - 1, device=images.device)
    left = torch.arange(len(images), device=images.device)
    passed: Passed | None = None
    for number in range(exits):
        own, passed = network.exit(number, images, passed)
        logits[left] = own
        taken[left] = number
        if number == exits - 1:
            break
        leaves = own.softmax(-1).amax(-1) > float(thresholds[number])  # never where it is not a number
        stays = leaves.logical_not().nonzero()[:, 0]
        if not len(stays):
            break
        if len(stays) < len(left):
            images, left, passed = images[stays], left[stays], passed.of(stays)
    return logits, taken


@torch.no_grad()
def every_exit(
    network: CascadeNetwork, data: Data, split: Split, limit: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(images, exits) how sure each exit is of each image, and whether its best class is the label, in the split's fixed order."""
    network.eval()
    confidence, hits = [], []
    for logits, labels in _batches(network, data, split, limit):
        scores, classes = logits.softmax(-1).max(-1)
        confidence.append(scores)
        hits.append(classes == labels[:, None])
    return torch.cat(confidence).numpy(), np.asarray(torch.cat(hits).numpy(), dtype=np.bool_)


def _batches(network: CascadeNetwork, data: Data, split: Split, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, exits, classes) and labels (B,) of every batch."""
    device = next(network.parameters()).device
    for images, labels in data.loader(split, BATCH, limit=limit):
        yield torch.stack(network(images.to(device)), 1).cpu(), labels
