"""Whether a budget can be met, before anything is trained or tried."""

from collections.abc import Callable, Sequence

import numpy as np

from nas.errors import BudgetError
from search_spaces import Space
from search_spaces.arch import Arch

__all__ = ["cheapest", "check_budgets"]


def cheapest(space: Space, ms: Callable[[Arch], float]) -> Arch:
    """The network with the least predicted milliseconds, by descent over single positions of the code from `space.smallest`.

    Ends because every step is strictly cheaper and a space is finite; where latency is not separable, a local minimum.
    """
    best, code = space.smallest, space.encode(space.smallest)
    improved = True
    while improved:
        improved = False
        for position, choice in enumerate(space.choices):
            for value in range(len(choice.values)):
                tried = space.repair(np.where(np.arange(len(code)) == position, value, code))
                arch = space.decode(tried)
                if ms(arch) < ms(best):
                    best, code, improved = arch, tried, True
    return best


def check_budgets(space: Space, budgets: Sequence[float], upper: Callable[[Arch], float]) -> tuple[float, float]:
    """The predicted upper milliseconds of the cheapest and of the largest network.

    Raises:
        BudgetError: a budget is below the cheapest network.
    """
    least = upper(cheapest(space, upper))
    if min(budgets) < least:
        raise BudgetError(
            f"a budget of {min(budgets):g} ms cannot be met in {space.name}: the cheapest network takes {least:.4g} ms; raise --budget-ms"
        )
    return least, upper(space.largest)
