"""Networks to time for the rows of a space of Mobile-Formers: each row in the context that it runs in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from search_spaces.spaces.mobile_former import Part

if TYPE_CHECKING:
    from search_spaces.arch import Arch
    from search_spaces.spaces.mobile_former import MobileFormers

__all__ = ["probes"]

CHAIN = 4  # equal blocks in a probe: enough to tell a block's time from the fixed part


class Probe(NamedTuple):
    """One network, spelled out but for its resolution."""

    parts: tuple[Part, ...]
    stem: int
    tokens: int
    features: int


def probes(space: MobileFormers) -> Iterator[Arch]:
    """Every probe, some of them twice."""
    every = [*_chains(space), *_pairs(space), *_ends(space)]
    for size, probe in product(space.sizes, every):
        yield space.arch(*probe, size)


def _base(space: MobileFormers, widths: Mapping[int, int]) -> Probe:
    """The fewest blocks in every stage, of the least widths but those given by stage, beside the most tokens."""
    parts: list[Part] = []
    for s, stage in enumerate(space.stages):
        before = parts[-1].width if parts else 0
        width = space.fitting(s, before, widths.get(s, min(stage.widths)))
        parts.append(Part(width, (min(space.ratios),) * min(stage.depths)))
    return Probe(tuple(parts), min(space.stems), max(space.tokens), min(space.features))


def _with(probe: Probe, s: int, ratios: tuple[float, ...]) -> Probe:
    """The probe with other blocks in a stage."""
    part = replace(probe.parts[s], ratios=ratios)
    return probe._replace(parts=(*probe.parts[:s], part, *probe.parts[s + 1 :]))


def _chains(space: MobileFormers) -> Iterator[Probe]:
    """Of every width on maps of every size, with every ratio and beside every number of tokens; where widths change, behind one block more."""
    low, most = min(space.ratios), max(space.tokens)
    for s, stage in enumerate(space.stages):
        known = () if stage.down else space.stages[s - 1].widths  # on the same maps
        for width in stage.widths:
            if width in known:
                continue
            base, first = _base(space, {s: width}), () if stage.down else (low,)
            for ratio in space.ratios:
                yield _with(base, s, (*first, *[ratio] * CHAIN))
            for tokens in space.tokens:
                if tokens != most:
                    yield _with(base, s, (*first, *[low] * CHAIN))._replace(tokens=tokens)


def _pairs(space: MobileFormers) -> Iterator[Probe]:
    """Every pair of widths where they change, by downsampling or, with every ratio, in a block."""
    for stem, width in product(space.stems, space.stages[0].widths):
        yield _base(space, {0: width})._replace(stem=stem)
    for s, stage in enumerate(space.stages[1:], 1):
        for before, width in product(space.stages[s - 1].widths, stage.widths):
            if space.fitting(s, before, width) == width:
                base = _base(space, {s - 1: before, s: width})
                yield from [base] if stage.down else (_with(base, s, (ratio,)) for ratio in space.ratios)


def _ends(space: MobileFormers) -> Iterator[Probe]:
    """Every number of tokens beside the map of every stem, and every number of features of every last width."""
    last = len(space.stages) - 1
    for stem, tokens in product(space.stems, space.tokens):
        yield _base(space, {})._replace(stem=stem, tokens=tokens)
    for width, features in product(space.stages[last].widths, space.features):
        yield _base(space, {last: width})._replace(features=features)
