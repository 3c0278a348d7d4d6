"""Cutting tokens into groups: which tokens come together, in which order, and back (SReT, arXiv 2111.05297, section 3.3; MobileViT, 2110.02178)."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["ORDERS", "arrangement", "inverse", "unfolded"]

ORDERS = ("contiguous", "strided", "permuted")


def arrangement(count: int, groups: int, order: str, seed: int = 0) -> Tensor:
    """(count,) indices of the tokens, group after group; on the CPU whatever the default device.

    contiguous: each group is a run of neighbours. strided: group k has the tokens k, k + groups, k + 2 groups, ...
    permuted: a permutation drawn from `seed`, the same on every machine.

    Raises:
        ValueError: the groups are not equally large, or there is no such order.
    """
    if groups < 1 or count % groups:
        raise ValueError(f"{count} tokens cannot be cut into {groups} equal groups")
    if order not in ORDERS:
        raise ValueError(f"token order must be one of {', '.join(ORDERS)}, got {order!r}")
    tokens = np.arange(count)
    if order == "strided":
        tokens = tokens.reshape(-1, groups).T.reshape(-1)
    elif order == "permuted":
        tokens = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(tokens.copy())


def unfolded(grid: tuple[int, int], side: int) -> Tensor:
    """(count,) indices of a grid's places, numbered row by row: side * side groups of those that lie alike in their tiles.

    The strided order of the places tile after tile, of `side` x `side` places each (MobileViT, arXiv 2110.02178, section 3.1).

    Raises:
        ValueError: the grid is no whole number of tiles.
    """
    height, width = grid
    if height % side or width % side:
        raise ValueError(f"a grid of {height} x {width} places is no whole number of tiles of {side} x {side}")
    places = np.arange(height * width).reshape(height // side, side, width // side, side)
    tiles = torch.from_numpy(places.transpose(0, 2, 1, 3).reshape(-1))
    return tiles[arrangement(height * width, side * side, "strided")]


def inverse(order: Tensor) -> Tensor:
    """(count,) where each token went: `x[order][inverse(order)]` is `x`."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back
