"""Which size each part gets, so that little is lost and the whole costs no more than it may; solved exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Group", "lower_bound", "solve"]

Floats = NDArray[np.float64]

HIGHEST = 1e18  # price of cost, beyond which the cheapest choice is all that is left
HALVINGS = 50  # of the interval that the price of cost is sought in


@dataclass(frozen=True)
class Group:
    """A part of which one of several forms is chosen; groups of one `block` are left out together, if at all."""

    block: int
    costs: Floats  # (forms,)
    losses: Floats  # (forms,)


def solve(groups: Sequence[Group], without: Mapping[int, float], limit: float) -> list[int | None] | None:
    """The form of each group, None where its block is left out, of least total loss whose costs add up to at most `limit`.

    The multiple-choice knapsack, by branch and bound to a gap of 0 (HiGHS).

    Args:
        groups: the parts.
        without: what is lost without a block, by its number; blocks that are not in it stay.
        limit: of the costs.

    Returns:
        None where even the cheapest choice costs more.
    """
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import lil_array

    sizes = [len(group.costs) for group in groups]
    first = np.concatenate([[0], np.cumsum(sizes)])
    gone = {block: int(first[-1]) + number for number, block in enumerate(without)}
    count = int(first[-1]) + len(gone)
    costs = np.concatenate([*(group.costs for group in groups), np.zeros(len(gone))])
    losses = np.concatenate([*(group.losses for group in groups), np.array(list(without.values()), dtype=float)])
    one = lil_array((len(groups), count))
    for row, group in enumerate(groups):
        one[row, first[row] : first[row + 1]] = 1
        if group.block in gone:
            one[row, gone[group.block]] = 1
    scale = float(np.abs(losses).max()) or 1.0
    budget = float(limit) or 1.0
    found = milp(
        losses / scale,
        integrality=np.ones(count),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one.tocsr(), 1, 1),
            LinearConstraint(costs[None] / abs(budget), -np.inf, limit / abs(budget)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    chosen = np.round(found.x).astype(int)
    picks: list[int | None] = []
    for row, group in enumerate(groups):
        out = group.block in gone and chosen[gone[group.block]] == 1
        picks.append(None if out else int(chosen[first[row] : first[row + 1]].argmax()))
    return picks


def lower_bound(groups: Sequence[Group], without: Mapping[int, float], limit: float) -> float:
    """What `solve` loses at least, without solving: the Lagrangian bound, which is that of the linear relaxation.

    Args:
        groups: as for `solve`, as are `without` and `limit`.
        without: see there.
        limit: see there.

    Returns:
        Infinity where even the cheapest choice costs more.
    """
    blocks: dict[int, list[Group]] = {}
    for group in groups:
        blocks.setdefault(group.block, []).append(group)

    def relaxed(price: float) -> tuple[float, float]:
        """Least loss with costs paid for at that price, and what it costs."""
        value, cost = 0.0, 0.0
        for block, own in blocks.items():
            paid = [group.losses + price * group.costs for group in own]
            picks = [int(one.argmin()) for one in paid]
            inside = sum(float(one[pick]) for one, pick in zip(paid, picks, strict=True))
            if block in without and without[block] <= inside:
                value += without[block]
                continue
            value += inside
            cost += sum(float(group.costs[pick]) for group, pick in zip(own, picks, strict=True))
        return value, cost

    kept = [sum(float(group.costs.min()) for group in own) for block, own in blocks.items() if block not in without]
    if sum(kept) > limit:
        return float("inf")
    value, cost = relaxed(0.0)
    if cost <= limit:
        return value
    low, high = 0.0, 1.0
    while relaxed(high)[1] > limit and high < HIGHEST:
        high *= 4
    best = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value, cost = relaxed(middle)
        best = max(best, value - middle * limit)
        low, high = (middle, high) if cost > limit else (low, middle)
    return best
