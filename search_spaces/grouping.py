"""Cutting tokens into groups: which tokens come together, in which order, and back (SReT, arXiv 2111.05297, section 3.3)."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["ORDERS", "arrangement", "inverse"]

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


def inverse(order: Tensor) -> Tensor:
    """(count,) where each token went: `x[order][inverse(order)]` is `x`."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back
