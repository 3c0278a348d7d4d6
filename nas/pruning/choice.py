"""The network that is measured to be within the budget."""

from dataclasses import dataclass

from compress.prune import BudgetTooSmall, Prunable, Pruned
from nas.errors import BudgetError
from nas.progress import say
from nas.pruning.files import Delivered, Files
from nas.pruning.job import Job
from nas.pruning.saved import Times
from search_spaces.spaces.frames import Frame

__all__ = ["Held", "within"]

TRIES = 6  # networks that are pruned and timed for a budget
SPARE = 0.995  # share of the budget that a solution after one above it aims at


@dataclass(frozen=True)
class Held:
    """A network that is measured to be within a budget, as its file is; before its times those of the dense one in the same run."""

    found: Pruned
    before: Times
    after: Times
    file: Delivered
    cheapest_ms: float  # the least that any network of these blocks is predicted to take


def within(job: Job, budget: float, files: Files) -> Held:
    """The network that is measured to be within the budget.

    Raises:
        BudgetError: nothing that is left of the network holds the budget.
    """
    limit, prunable = budget, job.prunable()
    frame: Frame | None = None
    least = min(one.cheapest for one in prunable.offers)
    cheapest = f"the cheapest network of these blocks is predicted to take {least:.4g} ms"
    for _ in range(TRIES):
        try:
            found = _found(prunable, limit, frame)
        except BudgetTooSmall as error:
            raise BudgetError(f"{cheapest}; raise the budget, or prune a smaller network") from error
        before, after = job.measured([job.named.arch, found.arch])
        taken, what = after["measured_ms"], "measured"
        if taken <= budget:
            file = files.delivered(found.arch, found.weights)
            if not file.over(budget):
                return Held(found, before, after, file, least)
            assert file.ms is not None
            taken, what = file.ms, "the exported file, in a process of its own, takes"
        say(f"{what} {taken:.4g} ms, over the budget of {budget:.4g} ms: pruning further")
        frame = (
            None if found.arch == job.named.arch else found.frame
        )  # the same one: another is mispriced in its own way
        limit *= SPARE * budget / taken
    raise BudgetError(
        f"after {TRIES} tries the network takes {taken:.4g} ms, above {budget:.4g} ms, and {cheapest}; the table and the clock "
        f"disagree: raise the budget, or on a quieter machine remove {job.table.path}.csv and .json and prune again with --target "
        f"{job.table.target.name}, which measures them anew"
    )


def _found(prunable: Prunable, limit: float, frame: Frame | None) -> Pruned:
    """The best network of a frame, or of any where the frame has none that is within the limit.

    Raises:
        BudgetTooSmall: no frame has.
    """
    if frame is not None:
        try:
            return prunable.within(limit, frame)
        except BudgetTooSmall:
            say(f"{frame.label}: nothing is left of it within {limit:.4g} ms; trying all others")
    return prunable.within(limit)
