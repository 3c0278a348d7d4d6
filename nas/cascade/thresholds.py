"""Thresholds of a cascade for a budget: pure functions of how sure each exit is of each image.

An image leaves at the first exit whose confidence, the largest softmax score, is above the exit's threshold; at the last one all leave.
"""

import numpy as np
from numpy.typing import NDArray

from nas.errors import BudgetError

__all__ = ["exits_taken", "mean_cost", "shares_of", "solve", "thresholds_for"]

Confidences = NDArray[np.float32]
"""(images, exits)."""
STEPS = 200  # bisections of the ratio of exit shares
RANGE = 40.0  # its logarithm is between minus this and this: beyond, all images leave at one exit


def exits_taken(confidence: Confidences, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """(images,) the exit that each image leaves at, of thresholds (exits - 1,)."""
    passes = confidence[:, :-1] > thresholds
    return np.asarray(np.where(passes.any(1), passes.argmax(1), confidence.shape[1] - 1), dtype=np.int64)


def mean_cost(confidence: Confidences, thresholds: NDArray[np.float64], costs: NDArray[np.float64]) -> float:
    """What an image costs on average, of `costs` (exits,) as far as each exit."""
    return float(costs[exits_taken(confidence, thresholds)].mean())


def shares_of(log_ratio: float, exits: int) -> NDArray[np.float64]:
    """(exits,) shares of the images that leave at each, every one that many times the one before (MSDNet, arXiv 1703.09844)."""
    powers = log_ratio * np.arange(exits)
    shares = np.exp(powers - powers.max())
    found: NDArray[np.float64] = shares / shares.sum()
    return found


def thresholds_for(confidence: Confidences, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(exits - 1,) thresholds by which no more than these shares of the images leave: at each exit, the surest of those that are left."""
    count, exits = confidence.shape
    left, found = np.arange(count), []
    for number in range(exits - 1):
        leaving = min(round(count * shares[number]), len(left))
        sorted_down = np.sort(confidence[left, number])[::-1]
        threshold = float(sorted_down[leaving]) if leaving < len(left) else 0.0
        found.append(threshold)
        left = left[confidence[left, number] <= threshold]
    return np.array(found)


def solve(confidence: Confidences, costs: NDArray[np.float64], budget: float) -> NDArray[np.float64]:
    """Thresholds (exits - 1,) by which these images cost no more than `budget` on average, and about as much if they can.

    Of exit shares in a geometric series, the one that leaves latest within the budget is taken: later exits know better.

    Args:
        confidence: of calibration images, at all exits.
        costs: (exits,) as far as each exit, rising.
        budget: in the unit of `costs`.

    Raises:
        BudgetError: even the first exit costs more.
    """
    if budget < costs[0]:
        raise BudgetError(f"the budget of {budget:.6g} is below the first exit's {costs[0]:.6g}, the cheapest possible")
    exits = confidence.shape[1]
    low, high = -RANGE, RANGE
    found = np.zeros(exits - 1)  # all leave at the first exit
    last = np.ones(exits - 1)  # and here at the last
    if mean_cost(confidence, last, costs) <= budget:
        return last
    for _ in range(STEPS):
        middle = (low + high) / 2
        candidate = thresholds_for(confidence, shares_of(middle, exits))
        if mean_cost(confidence, candidate, costs) <= budget:
            low, found = middle, candidate
        else:
            high = middle
    return found
