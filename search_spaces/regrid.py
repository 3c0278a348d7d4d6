"""Carrying a parameter whose places are those of a grid to another grid: linear, so gradients flow back to it."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Grid", "grid_of", "map_places", "offsets", "token_places"]

Grid = tuple[int, int]  # height and width

Scale = Callable[[int, int], Tensor]
"""Places of the old side and of the new one -> (new, old) weights of a one-dimensional interpolation."""


def grid_of(name: str) -> Grid:
    """The grid that a block's `grid_params` names, such as `14x14`.

    >>> grid_of("14x7")
    (14, 7)
    """
    height, width = name.split("x")
    return int(height), int(width)


def offsets(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """A bias for each offset on a grid, (heads, h * w) at |dy| * w + |dx|, as one on another grid.

    The offset d of the new grid stands for d * old / new, as far in the image; linear between two offsets of the old grid,
    the last one's value beyond it.

    Raises:
        ValueError: the table is not one of the grid `source`.
    """
    if table.ndim != 2 or table.shape[1] != source[0] * source[1]:
        raise ValueError(
            f"a table of offsets on {source} is (heads, {source[0] * source[1]}), got {tuple(table.shape)}"
        )
    return table if source == target else _scaled(table.reshape(-1, *source), target, _by_offset).flatten(1)


def map_places(table: Tensor, target: Grid) -> Tensor:
    """A value for each place of a map, (C, h, w), as one of another map.

    Centres of places meet: place i of the new side stands for (i + 0.5) * old / new - 0.5; linear between two places, the
    value of the first or the last beyond them.
    """
    return _scaled(table, target, _by_place)


def token_places(table: Tensor, source: Grid, target: Grid, prefix: int = 0) -> Tensor:
    """A value for each token, (prefix + h * w, C) in row order, as one for the tokens of another grid, see `map_places`.

    The first `prefix` rows, which lie on no place, are copied.

    Raises:
        ValueError: the table is not one of the grid `source`.
    """
    if table.ndim != 2 or table.shape[0] != prefix + source[0] * source[1]:
        wanted = prefix + source[0] * source[1]
        raise ValueError(f"a table of tokens on {source} is ({wanted}, C), got {tuple(table.shape)}")
    if source == target:
        return table
    places = map_places(table[prefix:].T.reshape(-1, *source), target).flatten(1).T
    return torch.cat([table[:prefix], places]) if prefix else places


def _scaled(table: Tensor, target: Grid, scale: Scale) -> Tensor:
    """A table (..., h, w) as (..., *target)."""
    height, width = table.shape[-2:]
    if (height, width) == target:
        return table
    rows, columns = (scale(*sides).to(table) for sides in ((height, target[0]), (width, target[1])))
    return rows @ table @ columns.T


def _by_offset(old: int, new: int) -> Tensor:
    return _between(torch.arange(new, dtype=torch.float64, device="cpu") * old / new, old)


def _by_place(old: int, new: int) -> Tensor:
    return _between((torch.arange(new, dtype=torch.float64, device="cpu") + 0.5) * old / new - 0.5, old)


def _between(points: Tensor, old: int) -> Tensor:
    """(new, old) weights that read a function on 0..old - 1 at `points` (new,), linear between and constant beyond."""
    points = points.clamp(0, old - 1)
    return (1 - (points[:, None] - torch.arange(old, device="cpu")).abs()).clamp(min=0)
