"""Tokens of a coarse grid spread over a finer one: each place takes what covers it (DVT, arXiv 2105.15075)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.regrid import Grid

__all__ = ["SpreadPairs", "SpreadTokens", "spread"]


def spread(old: int, new: int) -> Tensor:
    """(new, old) weights of one side, whose rows add up to 1; on the CPU.

    Each of the old places is doubled (nearest), and each new one is the mean of those that it overlaps (adaptive average).

    >>> spread(2, 3)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    doubled = torch.eye(old, device="cpu").repeat_interleave(2, 0)
    return F.adaptive_avg_pool1d(doubled.T[None], new)[0].T.contiguous()


def _patches(source: Grid, target: Grid) -> Tensor:
    """(patches of the target, of the source), row by row."""
    return torch.kron(spread(source[0], target[0]), spread(source[1], target[1]))


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """One above the other, in columns of their own."""
    return torch.cat([F.pad(first, (0, second.shape[1])), F.pad(second, (first.shape[1], 0))])


class SpreadTokens(nn.Module):
    """Patches (B, n, C) of the grid `source` -> tokens (B, prefix + N, C) of `target`, zero for the first `prefix`."""

    weights: Tensor

    def __init__(self, source: Grid, target: Grid, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.register_buffer("weights", _patches(source, target), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.weights @ x, (0, 0, self.prefix, 0))


class SpreadPairs(nn.Module):
    """A value for every two tokens of a grid, (B, H, n, n), as one for every two of another, (B, H, N, N).

    It is `K x Kᵀ` with K of `spread` along both sides of the grid. Leading tokens, which lie on no place, are spread by nothing; those that
    the `source` lacks get 0. Columns go first, in one matmul with all of K, as there are fewer rows then; rows follow side by side.
    """

    columns: Tensor
    down: Tensor
    across: Tensor

    def __init__(self, source: Grid, target: Grid, prefixes: tuple[int, int]) -> None:
        super().__init__()
        self.source, self.target, self.prefixes = source, target, prefixes
        old, new = prefixes
        leading = torch.eye(new, old, device="cpu")
        self.register_buffer("columns", _diagonal(leading, _patches(source, target)).T.contiguous(), False)
        self.register_buffer("down", spread(source[0], target[0]), False)
        self.register_buffer("across", spread(source[1], target[1]), False)

    def forward(self, x: Tensor) -> Tensor:
        batch, heads, count, _ = x.shape
        old, new = self.prefixes
        x = (x.reshape(-1, count) @ self.columns).reshape(batch * heads, count, -1)
        total = x.shape[2]
        patches = self.down @ x[:, old:].reshape(batch * heads, self.source[0], -1)
        patches = self.across @ patches.reshape(-1, self.source[1], total)
        parts = [x[:, : min(old, new)], patches.reshape(batch * heads, -1, total)]
        if new > old:
            parts.insert(1, x.new_zeros(batch * heads, new - old, total))
        return torch.cat(parts, 1).reshape(batch, heads, total, total)
