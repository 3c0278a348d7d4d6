"""Networks to time for the rows of a hybrid space: each row in the context that it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from search_spaces.spaces.hybrid_parts import Part

if TYPE_CHECKING:
    from search_spaces.blocks import MB3D
    from search_spaces.spaces.hybrid import Hybrid

__all__ = ["probes"]

CHAIN = 4  # equal blocks in a probe: enough to tell a block's time from the fixed part


def probes(space: Hybrid, size: int) -> Iterator[list[Part]]:
    """The parts of every probe at a resolution."""
    for s, stage in enumerate(space.stages):
        ends = _ends(space)
        for width in stage.widths:
            yield from _chains_4d(space, s, width)
            if stage.block:
                yield from _chains_3d(space, s, width, size)
            for end in ends:
                yield from _boundary(space, s, width, end)
            if s in ends:
                yield from _kept(space, s, width, size)
        if s:
            yield from _pairs(space, s)


def _ends(space: Hybrid) -> list[int]:
    """The stages that a network may end with."""
    last = len(space.stages) - 1
    return [last - 1, last] if 0 in space.stages[last].depths else [last]


def _base(space: Hybrid, first_3d: int, stages: int | None = None) -> list[Part]:
    """One cheap block a stage at the middle width; from the stage `first_3d` on a 3D one."""
    low = (space.ratios[0],)
    parts = []
    for s, stage in enumerate(space.stages[:stages]):
        width = stage.widths[len(stage.widths) // 2]
        parts.append(Part(width, (), low) if s >= first_3d else Part(width, low, mixer=stage.mixers[0]))
    return parts


def _chains_4d(space: Hybrid, s: int, width: int) -> Iterator[list[Part]]:
    for mixer, ratio in product(space.stages[s].mixers, space.ratios):
        parts = _base(space, len(space.stages))
        parts[s] = replace(parts[s], width=width, mb4d=(ratio,) * CHAIN, mixer=mixer)
        yield parts


def _forms(space: Hybrid, s: int) -> Iterator[tuple[MB3D, tuple[float, ...]]]:
    """3D blocks with one thing of their own each, and the FFN ratios to time them with: residual forms, projections, widths of v.

    Coefficients are rows of their own beside those of layer scale; the plain form has all rows to itself.
    """
    stage, low = space.stages[s], space.ratios[:1]
    forms = stage.residuals
    usual = "layer_scale" if "layer_scale" in forms or "coefficients" in forms else forms[0]
    yield replace(space.plain(s), residual=usual), space.ratios
    for form in forms:
        if form != usual:
            yield replace(space.plain(s), residual=form), space.ratios if form == "plain" else low
    for form in (usual, "plain") if "plain" in forms else (usual,):
        plain = replace(space.plain(s), residual=form)
        for nll in stage.nll:
            if nll:
                yield replace(plain, nll=nll), low
        for value in stage.values[1:]:
            yield replace(plain, value_dim=value), low


def _values(space: Hybrid, s: int) -> list[MB3D]:
    """The stage's plain block with each width of v."""
    return [replace(space.plain(s), value_dim=value) for value in space.stages[s].values] or [space.plain(s)]


def _cuts(space: Hybrid, s: int, size: int) -> Iterator[MB3D]:
    """Blocks in every number of groups, for each form that has rows of its own; and one whose tokens move, both ways or one."""
    stage = space.stages[s]
    groups = [groups for groups in stage.groups if groups > 1 and space.tokens(s, size) % groups == 0]
    forms = [block for block, ratios in _forms(space, s) if ratios == space.ratios and not block.nll]
    bases = [replace(form, value_dim=block.value_dim) for form, block in product(forms, _values(space, s))]
    for base, count in product(bases, groups):
        yield replace(base, groups=(count,), orders=("contiguous",))
    moving = [order for order in stage.orders if order != "contiguous"]
    for block, inverse in product(_values(space, s), stage.inverses) if groups and moving else ():
        base = replace(bases[0], value_dim=block.value_dim)
        yield replace(base, groups=(groups[0],), orders=(moving[0],), inverse=bool(inverse))


def _chains_3d(space: Hybrid, s: int, width: int, size: int) -> Iterator[list[Part]]:
    chains = [(block, ratio) for block, ratios in _forms(space, s) for ratio in ratios]
    chains += [(block, space.ratios[0]) for block in _cuts(space, s, size)]
    for block, ratio in chains:
        parts = _base(space, s)
        parts[s] = replace(parts[s], width=width, mb4d=(), mb3d=(ratio,) * CHAIN, block=block)
        yield parts


def _boundary(space: Hybrid, s: int, width: int, end: int) -> Iterator[list[Part]]:
    """The partition point inside the stage and before it; short, so that what comes once shows. Networks end with stage `end`."""
    if s > end:
        return
    low = space.ratios[0]
    for mb4d, mb3d in (((low,), (low,)), ((), (low, low))) if space.stages[s].block else ():
        parts = _base(space, s, end + 1)
        parts[s] = replace(parts[s], width=width, mb4d=mb4d, mb3d=mb3d)
        yield parts
    if s == end:
        parts = _base(space, end + 1, end + 1)
        parts[s] = replace(parts[s], width=width, mb4d=(low, low))
        yield parts


def _kept(space: Hybrid, s: int, width: int, size: int) -> Iterator[list[Part]]:
    """Chains behind a pruning location, for every number of patches that may be left there, and a second location."""
    stage, low = space.stages[s], space.ratios[0]
    counts = sorted({space.kept(s, size, share) for share in stage.keeps if share < 1}, reverse=True)
    if not stage.locations or not stage.block:
        return
    chains = [(block, low, 1) for block in _values(space, s)]
    chains += [(block, ratio, CHAIN) for block, ratios in _forms(space, s) for ratio in ratios]
    for count, (block, ratio, length) in product(counts, chains):
        parts = _base(space, s, s + 1)
        keeps = (0, count, *(0,) * (length - 1))
        parts[s] = Part(width, (), (low, *(ratio,) * length), block=block, keeps=keeps)
        yield parts
    for count, block in product(counts[:-1], _values(space, s)) if len(stage.locations) > 1 else ():
        parts = _base(space, s, s + 1)
        parts[s] = Part(width, (), (low,) * 3, block=block, keeps=(0, count, counts[-1]))
        yield parts


def _pairs(space: Hybrid, s: int) -> Iterator[list[Part]]:
    """Every pair of widths at the embed before a stage, from a map and, where the stage before may be 3D, from tokens."""
    for before, width in product(space.stages[s - 1].widths, space.stages[s].widths):
        for first_3d in {len(space.stages), s - 1 if space.stages[s - 1].block else len(space.stages)}:
            parts = _base(space, first_3d)
            parts[s - 1], parts[s] = replace(parts[s - 1], width=before), replace(parts[s], width=width)
            yield parts
