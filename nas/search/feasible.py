"""Whether a budget can be met, before anything is trained or tried."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from nas.errors import BudgetError
from nas.search.places import Place, Times, rows, told, within
from search_spaces import Space
from search_spaces.arch import Arch

__all__ = ["cheapest", "cheapest_for", "check_budgets"]


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


def cheapest_for(space: Space, places: Sequence[Place]) -> list[Arch]:
    """For each winner the network that takes the least share of its budgets, of that target where it takes most.

    Of one target that is the same for all. Of several it is the best of `cheapest` by that share, and by each target alone.
    """
    highs = [cache(place.high) for place in places]
    alone = [cheapest(space, high) for high in highs]
    if len(places) == 1:
        return alone * len(places[0].budgets)
    found = []
    for budgets in rows(places):

        def share(arch: Arch, budgets: Times = budgets) -> float:
            return max(high(arch) / budget for high, budget in zip(highs, budgets, strict=True))

        found.append(min([cheapest(space, share), *alone], key=share))
    return found


def check_budgets(space: Space, places: Sequence[Place]) -> tuple[Times, Times]:
    """The predicted upper milliseconds of the cheapest network of the tightest budgets, and of the largest network.

    Raises:
        BudgetError: budgets are below those of the cheapest network.
    """
    found = []
    for budgets, arch in zip(rows(places), cheapest_for(space, places), strict=True):
        least = tuple(place.high(arch) for place in places)
        if not within(least, budgets):
            asked = f"a budget of {budgets[0]:g} ms"
            if len(places) > 1:
                asked = f"budgets of {told(budgets, places)} together"
            raise BudgetError(
                f"{asked} cannot be met in {space.name}: the cheapest network takes {told(least, places)}; raise --budget-ms"
            )
        found.append((max(ms / budget for ms, budget in zip(least, budgets, strict=True)), least))
    return max(found)[1], tuple(place.high(space.largest) for place in places)
