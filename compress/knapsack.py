"""Which size each part gets, so that little is lost and the whole costs no more than it may, on each of several targets; solved exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Group", "Limits", "cheapest", "lower_bound", "solve"]

Floats = NDArray[np.float64]
Limits = float | Sequence[float] | Floats
"""Of the costs: one, or one for each target."""

HIGHEST = 1e18  # price of cost, beyond which the cheapest choice is all that is left
HALVINGS = 50  # of the interval that the price of cost is sought in


@dataclass(frozen=True)
class Group:
    """A part of which one of several forms is chosen; groups of one `block` are left out together, if at all."""

    block: int
    costs: Floats  # (forms,), or (targets, forms)
    losses: Floats  # (forms,)


def solve(groups: Sequence[Group], without: Mapping[int, float], limits: Limits) -> list[int | None] | None:
    """The form of each group, None where its block is left out, of least total loss whose costs add up to at most the limit of each target.

    The multiple-choice knapsack, with a constraint for each target, by branch and bound to a gap of 0 (HiGHS).

    Args:
        groups: the parts.
        without: what is lost without a block, by its number; blocks that are not in it stay.
        limits: of the costs.

    Returns:
        None where no choice is within all limits.
    """
    chosen, _ = _program(groups, without, _each(limits), whole=True)
    if chosen is None:
        return None
    first = np.concatenate([[0], np.cumsum([len(group.losses) for group in groups])])
    gone = {block for number, block in enumerate(without) if round(chosen[first[-1] + number]) == 1}
    return [
        None if group.block in gone else int(np.round(chosen[first[row] : first[row + 1]]).argmax())
        for row, group in enumerate(groups)
    ]


def _program(
    groups: Sequence[Group], without: Mapping[int, float], limits: Floats, *, whole: bool
) -> tuple[Floats | None, float]:
    """How much of each form of each group, and then of leaving out each block, is chosen, and what is lost; without `whole` in shares.

    Nothing, and infinity, where no choice is within all limits.
    """
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import lil_array

    first = np.concatenate([[0], np.cumsum([len(group.losses) for group in groups])])
    gone = {block: int(first[-1]) + number for number, block in enumerate(without)}
    count = int(first[-1]) + len(gone)
    costs = np.concatenate([*(np.atleast_2d(group.costs) for group in groups), np.zeros((len(limits), len(gone)))], 1)
    losses = np.concatenate([*(group.losses for group in groups), np.array(list(without.values()), dtype=float)])
    one = lil_array((len(groups), count))
    for row, group in enumerate(groups):
        one[row, first[row] : first[row + 1]] = 1
        if group.block in gone:
            one[row, gone[group.block]] = 1
    scale = float(np.abs(losses).max()) or 1.0
    sizes = np.abs(np.where(limits == 0, 1.0, limits))
    found = milp(
        losses / scale,
        integrality=np.full(count, int(whole)),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one.tocsr(), 1, 1),
            LinearConstraint(costs / sizes[:, None], -np.inf, limits / sizes),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return (None, float("inf")) if found.x is None else (found.x, float(found.fun) * scale)


def _each(limits: Limits) -> Floats:
    """(targets,)."""
    return np.atleast_1d(np.asarray(limits, dtype=float))


def cheapest(groups: Sequence[Group], without: Mapping[int, float], fixed: Floats, limits: Limits) -> Floats:
    """Costs (targets,), `fixed` added, of the choice that takes the least share of its limits, of that where it takes most.

    Of several targets it is the best of what is cheapest on each of them alone, and by the sum of the shares.
    """
    kept = [np.atleast_2d(group.costs) for group in groups if group.block not in without]
    each = _each(limits)
    shares = 1 / np.where(each > 0, each, 1.0)
    weights = [*np.eye(len(shares)), *([shares] if len(shares) > 1 else [])]
    found = [sum((costs[:, (own @ costs).argmin()] for costs in kept), fixed) for own in weights]
    return min(found, key=lambda costs: float((costs * shares).max()))


def lower_bound(groups: Sequence[Group], without: Mapping[int, float], limits: Limits) -> float:
    """What `solve` loses at least, without solving: the Lagrangian bound, which is that of the linear relaxation.

    Of one target it is sought in its one price of cost, of several by that relaxation.

    Args:
        groups: as for `solve`, as are `without` and `limits`.
        without: see there.
        limits: see there.

    Returns:
        Infinity where no choice is within all limits.
    """
    each = _each(limits)
    if len(each) > 1:
        return _program(groups, without, each, whole=False)[1]
    limit = float(each[0])
    blocks: dict[int, list[Group]] = {}
    for group in groups:
        blocks.setdefault(group.block, []).append(replace(group, costs=group.costs.reshape(-1)))

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

    if cheapest(groups, without, np.zeros(1), limit)[0] > limit:
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
