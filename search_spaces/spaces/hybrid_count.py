"""How many different networks a hybrid space has, without listing them."""

from __future__ import annotations

from functools import cache
from itertools import product
from math import comb, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.spaces.hybrid import Hybrid

__all__ = ["networks"]


def networks(space: Hybrid) -> int:
    """For every resolution, depths and partition point, the product of what the stages may be."""

    @cache
    def ways(size: int, s: int, mb4d: int, mb3d: int, last: bool) -> int:
        stage = space.stages[s]
        found = len(space.ratios) ** (mb4d + mb3d) * (len(stage.widths) if mb4d + mb3d else 1)
        found *= len(stage.mixers) if mb4d else 1
        return int(found * (_ways_3d(space, size, s, mb3d, last) if mb3d else 1))

    total = 0
    for size, depths in product(space.sizes, product(*(stage.depths for stage in space.stages))):
        for count in (count for count in space.mb3d if count <= space.room(depths)):
            tails = space.trailing(depths, count)
            last = max(s for s, depth in enumerate(depths) if depth)
            total += prod(
                ways(size, s, depth - tail, tail, s == last)
                for s, (depth, tail) in enumerate(zip(depths, tails, strict=True))
            )
    return total


def _ways_3d(space: Hybrid, size: int, s: int, count: int, last: bool) -> int:
    """In how many ways the 3D blocks of a stage can be, their ratios left out."""
    stage, tokens = space.stages[s], space.tokens(s, size)
    groups = [groups for groups in stage.groups if tokens % groups == 0]
    whole, cut = groups.count(1), sum(groups > 1 for groups in groups)
    moving = sum(order != "contiguous" for order in stage.orders)
    still, every = whole + cut * (len(stage.orders) - moving), whole + cut * len(stage.orders)
    total = 0
    for loops in stage.loops:
        cuts = still**loops + (every**loops - still**loops) * len(stage.inverses)
        external = stage.recursions.count("external") if loops > 1 and count > 1 else 0
        internal = stage.recursions.count("internal") if external else 1
        total += cuts * (internal * (_prunings(space, size, s, count) if last else 1) + external)
    return total * len(stage.residuals) * len(stage.nll) * max(1, len(stage.values))


def _prunings(space: Hybrid, size: int, s: int, count: int) -> int:
    """In how many ways ever fewer patches can be kept at some of the locations."""
    places = sum(i < count - 1 for i in space.stages[s].locations)
    shares = sum(space.kept(s, size, share) < space.tokens(s, size) for share in space.stages[s].keeps)
    return sum(comb(places, used) * comb(shares, used) for used in range(places + 1))
