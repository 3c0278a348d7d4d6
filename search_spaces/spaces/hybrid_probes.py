"""Networks to time for the rows of a hybrid space: each row in the context that it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.blocks import MB3D
    from search_spaces.spaces.hybrid import Hybrid, Part

__all__ = ["probes"]

CHAIN = 6  # equal blocks in a probe: enough to tell a block's time from the fixed part


def probes(space: Hybrid) -> Iterator[list[Part]]:
    """The parts of every probe."""
    for s, stage in enumerate(space.stages):
        for width in stage.widths:
            yield from _chains_4d(space, s, width)
            if stage.block:
                yield from _chains_3d(space, s, width)
                yield from _boundary(space, s, width)
        if s:
            yield from _pairs(space, s)


def _base(space: Hybrid, first_3d: int) -> list[Part]:
    """One cheap block a stage at the middle width; from the stage `first_3d` on a 3D one."""
    from search_spaces.spaces.hybrid import Part

    low = (space.ratios[0],)
    parts = []
    for s, stage in enumerate(space.stages):
        width = stage.widths[len(stage.widths) // 2]
        parts.append(Part(width, (), low) if s >= first_3d else Part(width, low, mixer=stage.mixers[0]))
    return parts


def _chains_4d(space: Hybrid, s: int, width: int) -> Iterator[list[Part]]:
    for mixer, ratio in product(space.stages[s].mixers, space.ratios):
        parts = _base(space, len(space.stages))
        parts[s] = replace(parts[s], width=width, mb4d=(ratio,) * CHAIN, mixer=mixer)
        yield parts


def _variants(space: Hybrid, s: int, plain: MB3D) -> Iterator[MB3D]:
    """The 3D blocks of a stage with one thing of their own each: a projection, or groups in an order."""
    stage = space.stages[s]
    for nll in stage.nll:
        if nll:
            yield replace(plain, nll=nll)
    for groups, order in product(stage.groups, stage.orders):
        if groups > 1 and space.tokens[s] % groups == 0:
            yield replace(plain, groups=(groups,), orders=(order,))


def _chains_3d(space: Hybrid, s: int, width: int) -> Iterator[list[Part]]:
    chains: list[tuple[MB3D, float]] = []
    for form in space.stages[s].residuals:
        plain = replace(space.plain(s), residual=form)
        chains += [(plain, ratio) for ratio in space.ratios]
        chains += [(block, space.ratios[0]) for block in _variants(space, s, plain)]
    for block, ratio in chains:
        parts = _base(space, s)
        parts[s] = replace(parts[s], width=width, mb4d=(), mb3d=(ratio,) * CHAIN, block=block)
        yield parts


def _boundary(space: Hybrid, s: int, width: int) -> Iterator[list[Part]]:
    """The partition point inside the stage and before it; short, so that what comes once shows."""
    low = space.ratios[0]
    for mb4d, mb3d in (((low,), (low,)), ((), (low, low))):
        parts = _base(space, s)
        parts[s] = replace(parts[s], width=width, mb4d=mb4d, mb3d=mb3d)
        yield parts
    if s == len(space.stages) - 1:
        parts = _base(space, s + 1)
        parts[s] = replace(parts[s], width=width, mb4d=(low, low))
        yield parts


def _pairs(space: Hybrid, s: int) -> Iterator[list[Part]]:
    """Every pair of widths at the embed before a stage, from a map and, where the stage before may be 3D, from tokens."""
    for before, width in product(space.stages[s - 1].widths, space.stages[s].widths):
        for first_3d in {len(space.stages), s - 1 if space.stages[s - 1].block else len(space.stages)}:
            parts = _base(space, first_3d)
            parts[s - 1], parts[s] = replace(parts[s - 1], width=before), replace(parts[s], width=width)
            yield parts
