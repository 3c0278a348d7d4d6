"""The network that is measured to be within the budget, on each target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compress.prune import BudgetTooSmall, Prunable, Pruned
from nas.errors import BudgetError
from nas.progress import say
from nas.pruning.files import Files
from nas.pruning.places import Budgets, Taken, exceeded, told
from nas.pruning.saved import steadiness
from search_spaces.arch import Arch
from search_spaces.spaces.frames import Frame

__all__ = ["Held", "within"]

TRIES = 6  # networks that are pruned and timed for a budget
SPARE = 0.995  # share of the budget that a solution after one above it aims at


@dataclass(frozen=True)
class Held:
    """A network that is measured to be within its budget on each target, as its file is there."""

    found: Pruned
    taken: tuple[Taken, ...]


def within(places: Sequence[Files], budgets: Budgets) -> Held:
    """The network that is measured to be within the budget of each target; where it is over one, that limit alone is lowered.

    Budgets are of the median of the runs, and limits of the table's statistic.

    Raises:
        BudgetError: nothing that is left of the network holds the budgets.
    """
    job = places[0].job
    prunable = job.prunable()
    steady = [steadiness(place.dense_times) for place in places]
    limits = tuple(budget * share for budget, share in zip(budgets, steady, strict=True))
    frame: Frame | None = None
    least = tuple(ms / share for ms, share in zip(prunable.cheapest(limits), steady, strict=True))
    cheapest = f"the cheapest network of these blocks is predicted to take {told(dict(enumerate(least)), places)}"
    for _ in range(TRIES):
        try:
            found = _found(prunable, limits, frame, places)
        except BudgetTooSmall as error:
            raise BudgetError(
                f"{cheapest}{_over(exceeded(least, budgets), budgets, places)}; raise the budget, or prune a smaller network"
            ) from error
        taken = [_timed(place, [job.named.arch, found.arch]) for place in places]
        over, what = exceeded([one.ms for one in taken], budgets), "measured"
        if not over:
            taken = [_filed(one, place, found, ms) for one, place, ms in zip(taken, places, least, strict=True)]
            over = exceeded([one.file_ms for one in taken], budgets)
            if not over:
                return Held(found, tuple(taken))
            what = "the exported file, in a process of its own, takes"
        say(f"{what} {told(over, places)}{_over(over, budgets, places)}: pruning further")
        frame = (
            None if found.arch == job.named.arch else found.frame
        )  # the same one: another is mispriced in its own way
        limits = tuple(
            _lowered(limit, budgets[number] / over[number], found, places, number) if number in over else limit
            for number, limit in enumerate(limits)
        )
    above = {number: budgets[number] for number in over}
    tables = [places[number].job.table for number in over]
    files = " and ".join(f"{table.path}.csv and .json" for table in tables)
    targets = " ".join(f"--target {table.target.name}" for table in tables)
    raise BudgetError(
        f"after {TRIES} tries the network takes {told(over, places)}, above {told(above, places)}, and {cheapest}; the table and the clock "
        f"disagree: raise the budget, or on a quieter machine remove {files} and prune again with {targets}, which measures them anew"
    )


def _over(over: Mapping[int, float], budgets: Budgets, places: Sequence[Files]) -> str:
    """The budgets that are exceeded, as the end of a message."""
    above = {number: budgets[number] for number in over}
    return f", over the budget of {told(above, places)}" if above else ""


def _timed(place: Files, archs: Sequence[Arch]) -> Taken:
    """What the second of two networks takes on a target, beside the first."""
    before, after = place.job.measured(archs)
    return Taken(before, after)


def _filed(taken: Taken, place: Files, found: Pruned, cheapest_ms: float) -> Taken:
    """With the network's file on a target."""
    file = place.delivered(found.arch, found.weights)
    times = {} if file.times is None else {"file_ms": file.times.ms, "file_median_ms": file.times.median_ms}
    return replace(taken, file=file, told={"cheapest_ms": cheapest_ms, **times})


def _lowered(limit: float, share: float, found: Pruned, places: Sequence[Files], number: int) -> float:
    """The limit of a target on which the budget is that share of what was taken."""
    lower = limit * SPARE * share
    if len(places) == 1:
        return lower
    predicted = places[number].job.table.predict(found.arch).ms
    return lower if predicted > lower else predicted * SPARE * share  # of several limits not all bind


def _found(prunable: Prunable, limits: Budgets, frame: Frame | None, places: Sequence[Files]) -> Pruned:
    """The best network of a frame, or of any where the frame has none that is within the limits.

    Raises:
        BudgetTooSmall: no frame has.
    """
    if frame is not None:
        try:
            return prunable.within(limits, frame)
        except BudgetTooSmall:
            say(
                f"{frame.label}: nothing is left of it within {told(dict(enumerate(limits)), places)}; trying all others"
            )
    return prunable.within(limits)
