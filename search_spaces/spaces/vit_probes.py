"""Networks to time for the rows of a space of ViTs: each row in the context that it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from search_spaces.spaces.thresholded import with_thresholds
from search_spaces.spaces.vit import Layer

if TYPE_CHECKING:
    from search_spaces.arch import Arch
    from search_spaces.spaces.vit import Vit

__all__ = ["probes"]

CHAIN = 4  # equal blocks in a probe: enough to tell a block's time from the fixed part


def probes(space: Vit) -> tuple[Arch, ...]:
    """Every probe once; those with thresholds last."""
    archs: dict[Arch, None] = {}
    for width in space.widths:
        for size, chain in product(space.sizes, _chains(space, width)):
            archs[space.arch(width, chain, size)] = None
        for layers, size in _pruned(space, width):
            archs[space.arch(width, layers, size)] = None
    return tuple(archs) + with_thresholds(tuple(archs))


def _usual(space: Vit, width: int) -> Layer:
    """The block that others differ from in one thing: its heads and q/k width, or its ratio."""
    return Layer(space.heads(width, space.shares[0]), space.key_dims[0], space.ratios[0])


def _chains(space: Vit, width: int) -> Iterator[list[Layer]]:
    """A chain of every form of attention and of every MLP; and a shorter one, which tells what comes once."""
    usual = _usual(space, width)
    yield [usual]
    for share, key_dim in product(space.shares, space.key_dims):
        yield [replace(usual, heads=space.heads(width, share), key_dim=key_dim)] * CHAIN
    for ratio in space.ratios[1:]:
        yield [replace(usual, ratio=ratio)] * CHAIN


def _pruned(space: Vit, width: int) -> Iterator[tuple[list[Layer], int]]:
    """Those chains behind a pruning location for every number of kept patches, and every attention that scores; with their image sizes.

    A chain runs at the smallest resolution that has more patches, because what is left of them does not tell it.
    """
    usual, least = _usual(space, width), min(space.keeps, default=0)
    for keep in space.keeps if space.locations else ():
        size = min(size for size in space.sizes if space.patches(size) > keep)
        for first, *others in _chains(space, width):
            yield [usual, replace(first, keep=keep), *others], size
        if len(space.locations) > 1 and keep > least:
            for share in space.shares:
                scoring = replace(usual, heads=space.heads(width, share), keep=keep)
                yield [usual, scoring, replace(usual, keep=least)], size
    for size, share in product(space.sizes, space.shares):
        if space.locations and space.patches(size) > least:
            yield [replace(usual, heads=space.heads(width, share)), replace(usual, keep=least)], size
