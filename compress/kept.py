"""Which patches of an image are still there behind each pruning location, and which were merged into one token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search_spaces.arch import Network
from search_spaces.blocks.token_prune import TokenPruneModule
from search_spaces.merging import match
from search_spaces.states import Tokens
from search_spaces.tokens import Kept

__all__ = ["GONE", "patch_tokens"]

GONE = -1  # in place of the token of a patch that was dropped, or fused with others that were not kept


@torch.no_grad()
def patch_tokens(network: Network, images: Tensor) -> list[Tensor]:
    """Behind each pruning location the number of the token that every patch is part of, (B, grid height, grid width); -1 for patches that are not kept.

    Tokens are numbered in the order in which they go on, class tokens left out. Images are run one by one, so that each keeps
    what it keeps alone, by a number or by a threshold.

    Args:
        network: it is run in eval mode and comes back in the mode it was in.
        images: (B, channels, H, W).
    """
    grids = [state.grid for place in network.arch.locations if isinstance(state := network.arch.states[place], Tokens)]
    numbers = [torch.empty(len(images), *grid, dtype=torch.int64) for grid in grids]
    training = network.training
    network.eval()
    try:
        for row, image in enumerate(images):
            with _watched(network) as found:
                network(image[None])
            for filled, own in zip(numbers, found, strict=True):
                filled[row] = own.reshape(filled.shape[1:]).cpu()
    finally:
        network.train(training)
    return numbers


@contextmanager
def _watched(network: Network) -> Iterator[list[Tensor]]:
    """Meanwhile every location adds the token (patches of the grid,) of each patch of the one image."""
    found: list[Tensor] = []

    def see(module: nn.Module, given: tuple[Kept], left: Kept) -> None:
        assert isinstance(module, TokenPruneModule)
        before = found[-1] if found else torch.arange(module.total, device=left.x.device)
        found.append(_merged(module, given[0], before) if module.merges else _kept(left, before))

    handles = [network.blocks[place].register_forward_hook(see) for place in network.arch.locations]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _kept(left: Kept, before: Tensor) -> Tensor:
    assert left.places is not None
    places = left.places[0]
    return torch.full_like(before, GONE).scatter(0, places, torch.arange(len(places), device=places.device))


def _merged(module: TokenPruneModule, given: Kept, before: Tensor) -> Tensor:
    """Those of the first set that stay, and then the second set with what goes into it; see `search_spaces.merging`."""
    if not module.fewer:
        return before
    assert given.keys is not None
    pairs = match(given.keys, module.fewer)
    staying, second = pairs.stay.shape[1], pairs.similarity.shape[2]
    number = torch.empty(given.keys.shape[1], dtype=torch.int64, device=before.device)
    number[2 * pairs.stay[0]] = torch.arange(staying, device=before.device)
    number[1::2] = staying + torch.arange(second, device=before.device)
    number[2 * pairs.merged[0]] = staying + pairs.into[0]
    return number[before]
