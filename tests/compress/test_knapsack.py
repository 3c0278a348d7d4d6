"""The choice of sizes against trying all of them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from compress.knapsack import Floats, Group, cheapest, lower_bound, solve


def drawn(seed: int, blocks: int = 3, forms: int = 4) -> tuple[list[Group], dict[int, float]]:
    """Two parts a block, whose larger forms cost more and lose less; without a block more is lost than by any form of it."""
    rng = np.random.default_rng(seed)
    groups = [
        Group(block, np.sort(rng.uniform(1, 10, forms)), np.sort(rng.uniform(0, 1, forms))[::-1].copy())
        for block in range(blocks)
        for _ in range(2)
    ]
    return groups, {block: float(rng.uniform(0.5, 3)) for block in range(1, blocks)}


def totals(groups: list[Group], without: dict[int, float], picks: tuple[int | None, ...]) -> tuple[float, float]:
    """Cost and loss."""
    kept = [(group, pick) for group, pick in zip(groups, picks, strict=True) if pick is not None]
    gone = {group.block for group, pick in zip(groups, picks, strict=True) if pick is None}
    cost = sum(float(group.costs[pick]) for group, pick in kept)
    return cost, sum(float(group.losses[pick]) for group, pick in kept) + sum(without[block] for block in gone)


def costs_of(groups: list[Group], picks: tuple[int | None, ...]) -> Floats:
    """On each of two targets."""
    kept = [group.costs[:, pick] for group, pick in zip(groups, picks, strict=True) if pick is not None]
    return sum(kept, np.zeros(2))


def every(groups: list[Group], without: dict[int, float]) -> list[tuple[int | None, ...]]:
    """All choices, in which a block is left out with both parts or with none."""
    forms = [[*range(len(group.losses)), None] for group in groups]
    return [
        picks
        for picks in product(*forms)
        if all(
            (picks[i] is None) == (picks[j] is None) and (picks[i] is not None or groups[i].block in without)
            for i in range(len(groups))
            for j in range(len(groups))
            if groups[i].block == groups[j].block
        )
    ]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_choice_within_the_limit_loses_less(seed: int, share: float) -> None:
    groups, without = drawn(seed)
    limit = share * sum(float(group.costs[-1]) for group in groups)
    choices = [totals(groups, without, picks) for picks in every(groups, without)]
    best = min((loss for cost, loss in choices if cost <= limit), default=None)
    found = solve(groups, without, limit)
    if best is None:
        assert found is None
        return
    assert found is not None
    cost, loss = totals(groups, without, tuple(found))
    assert cost <= limit * (1 + 1e-9) and loss == pytest.approx(best)


def test_a_block_that_must_stay_stays() -> None:
    groups = [Group(0, np.array([1.0, 2.0]), np.array([5.0, 0.0]))]
    assert solve(groups, {}, 1.5) == [0] and solve(groups, {0: 1.0}, 1.5) == [None] and solve(groups, {}, 0.5) is None


@pytest.mark.parametrize("shares", [(0.3, 0.5), (0.5, 0.3), (0.6, 0.6), (1.0, 0.15), (0.05, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_limits_hold_on_every_target(seed: int, shares: tuple[float, ...]) -> None:
    """The second target's costs have nothing to do with the first's."""
    alone, without = drawn(seed, forms=3)
    rng = np.random.default_rng(seed)
    groups = [replace(group, costs=np.stack([group.costs, rng.uniform(1, 10, 3)])) for group in alone]
    most = sum(group.costs.max(1) for group in groups)
    limits = np.array(shares) * most
    choices = [(*costs_of(groups, picks), totals(alone, without, picks)[1]) for picks in every(groups, without)]
    fitting = [loss for *costs, loss in choices if (np.array(costs) <= limits).all()]
    found, bound = solve(groups, without, limits), lower_bound(groups, without, limits)
    spent = cheapest(groups, without, np.zeros(2), limits)
    assert any(np.allclose(spent, costs) for *costs, _ in choices), "what is named cheapest is a choice"
    if not fitting:
        assert found is None and (spent > limits).any()
        return
    assert found is not None
    assert (costs_of(groups, tuple(found)) <= limits * (1 + 1e-9)).all()
    best = totals(alone, without, tuple(found))[1]
    assert best == pytest.approx(min(fitting)) and bound <= best * (1 + 1e-6)
    for one in (0, 1):
        assert bound >= lower_bound([replace(g, costs=g.costs[one]) for g in groups], without, limits[one]) - 1e-6
