"""Which patches of an image are still there behind each pruning location."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.arch import Network
from search_spaces.states import Tokens
from search_spaces.tokens import Kept

__all__ = ["kept_patches"]


@contextmanager
def _places(network: Network) -> Iterator[list[Tensor]]:
    """Meanwhile every location adds where the patches (1, n) lie that it lets through."""
    found: list[Tensor] = []

    def see(module: nn.Module, given: Any, kept: Kept) -> None:
        assert kept.places is not None
        found.append(kept.places[0])

    handles = [network.blocks[place].register_forward_hook(see) for place in network.arch.locations]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def kept_patches(network: Network, images: Tensor) -> list[Tensor]:
    """What each pruning location leaves of every image: bool masks (B, grid height, grid width), in the locations' order.

    Images are run one by one, so that each keeps what it keeps alone, by a number or by a threshold.

    Args:
        network: it is run in eval mode and comes back in the mode it was in.
        images: (B, channels, H, W).
    """
    grids = [state.grid for place in network.arch.locations if isinstance(state := network.arch.states[place], Tokens)]
    masks = [torch.zeros(len(images), *grid, dtype=torch.bool) for grid in grids]
    training = network.training
    network.eval()
    try:
        for number, image in enumerate(images):
            with _places(network) as found:
                network(image[None])
            for mask, places in zip(masks, found, strict=True):
                mask[number].view(-1)[places.cpu()] = True
    finally:
        network.train(training)
    return masks
