"""The choice of sizes against trying all of them."""

from itertools import product

import numpy as np
import pytest

from compress.knapsack import Group, solve


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


def every(groups: list[Group], without: dict[int, float]) -> list[tuple[int | None, ...]]:
    """All choices, in which a block is left out with both parts or with none."""
    forms = [[*range(len(group.costs)), None] for group in groups]
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
