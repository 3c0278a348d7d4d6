"""Networks to time for the rows of a space of MobileViTs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from search_spaces.spaces.mobilevit import Part

if TYPE_CHECKING:
    from search_spaces.spaces.mobilevit import MobileViTs

__all__ = ["probes"]

CHAIN = 4  # equal blocks, or layers, in a probe: enough to tell their time from the fixed part


def probes(space: MobileViTs) -> Iterator[list[Part]]:
    """The parts of every probe: the smallest network with one or two stages changed."""
    base = [
        Part(min(widths), min(space.expands), *(min(of[s]) for of in (space.dims, space.depths) if s in of))
        for s, widths in enumerate(space.widths)
    ]
    for s, widths in enumerate(space.widths):
        for before, width, expand in product(space.widths[s - 1] if s else (0,), widths, space.expands):
            parts = list(base)
            if s:
                parts[s - 1] = replace(parts[s - 1], width=before)
            parts[s] = replace(parts[s], width=width, expand=expand)
            yield parts
        if s in space.dims:
            yield from _transformers(space, base, s)


def _transformers(space: MobileViTs, base: list[Part], s: int) -> Iterator[list[Part]]:
    """MobileViT blocks in a row for every pair of widths, and one of many layers for every width of its transformer."""
    for width, dim in product(space.widths[s], space.dims[s]):
        parts = list(base)
        parts[s] = replace(parts[s], width=width, dim=dim, repeats=CHAIN)
        yield parts
    for dim in space.dims[s]:
        parts = list(base)
        parts[s] = replace(parts[s], dim=dim, depth=base[s].depth + CHAIN)
        yield parts
