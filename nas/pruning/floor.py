"""The fastest network that loses no more accuracy than is allowed: bisection over the predicted milliseconds."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

from compress.prune import BudgetTooSmall, Prunable, Pruned
from nas.errors import BudgetError
from nas.progress import say
from nas.pruning.attempt import Attempt, unchanged
from nas.pruning.goal import Floor
from nas.pruning.heal import Healing, heal
from nas.pruning.job import Job
from nas.pruning.judge import val_accuracy
from nas.pruning.places import Taken
from nas.pruning.saved import saved
from nas.runs import Run

__all__ = ["fastest", "held"]

MEDIAN = "measured_median_ms"  # of the runs, by which networks are compared
TRIES, TRAININGS = 8, 4  # networks that are pruned, and those of them that are trained, at most
LEAST = 1 / 16  # share of the dense network's time at which the search begins
CLOSE = 1.02  # ratio of the ends at which it is over


@dataclass(frozen=True)
class Bracket:
    """Between which milliseconds the fastest network lies, and which try, if any, is the fastest so far."""

    low: float
    high: float
    best: int | None = None
    tries: int = 0
    trainings: int = 0

    def after(self, record: dict[str, Any]) -> "Bracket":
        """What is known with one try more."""
        seen = replace(self, tries=self.tries + 1, trainings=self.trainings + record["trained"])
        if record["holds"]:
            return replace(seen, high=min(record["limit"], record["ms"]), best=self.tries)
        return replace(seen, low=max(record["limit"], record["ms"]))

    @property
    def done(self) -> bool:
        """Whether another try would tell too little."""
        return self.tries == TRIES or self.trainings == TRAININGS or self.high / self.low < CLOSE


def fastest(job: Job, folder: Path, floor: Floor, healing: Healing) -> tuple[Attempt, list[dict[str, Any]]]:
    """The fastest of a few networks whose accuracy on search-validation holds, measured; and what each try came to.

    A try that holds before training is not trained, unless it is the last that does. Each is recorded in the folder when it is
    over, so a search that was killed goes on with the next. Nothing holds: the dense network.

    Args:
        job: what is to be pruned.
        folder: of the tries; those that are passed over are removed.
        floor: of accuracy.
        healing: of each try.
    """
    dense = job.named.arch
    ms = job.table.predict(dense).ms
    config = {"dense": job.source, "max_drop": floor.max_drop, "healing": healing.described()}
    run, prunable = Run.start(folder, "floor", config, resume=True), cache(job.prunable)
    bracket = Bracket(LEAST * ms, ms)
    for record in run.records():
        bracket = bracket.after(record)
    with run.locked():
        while not bracket.done:
            _sweep(folder, bracket)
            limit, number = sqrt(bracket.low * bracket.high), bracket.tries
            record = _tried(job, folder / str(number), limit, floor, healing, prunable)
            say(f"try {number + 1}: {record['ms']:.4g} ms, accuracy {_told(record['acc'])} of {floor.dense:.4g}")
            run.append(record)
            bracket = bracket.after(record)
        _sweep(folder, bracket)
    tries = run.records()
    if bracket.best is None:
        say(f"no try loses at most {floor.max_drop:g} of accuracy: the network stays as it is")
        return unchanged(job), tries
    return _last(job, folder / str(bracket.best), tries[bracket.best], healing), tries


def _told(accuracy: float | None) -> str:
    return "none" if accuracy is None else f"{accuracy:.4g}"


def _calibrated(job: Job, folder: Path, limit: float, prunable: Callable[[], Prunable]) -> Pruned:
    config = {"dense": job.source, "limit_ms": limit}
    found, _ = saved(folder / "calibrated", config, lambda: (prunable().within(limit), []))
    return found


def _tried(
    job: Job,
    folder: Path,
    limit: float,
    floor: Floor,
    healing: Healing,
    prunable: Callable[[], Prunable],
) -> dict[str, Any]:
    """What pruning to `limit` ms comes to: `limit`, `ms`, `acc`, `holds`, `trained`."""
    try:
        found = _calibrated(job, folder, limit, prunable)
    except BudgetTooSmall as error:
        return {"limit": limit, "ms": error.cheapest, "acc": None, "holds": False, "trained": False}
    acc = val_accuracy(job, found)
    training = None
    if not floor.holds(acc) and healing.changes:
        found, training = heal(job, found, folder / "trained", healing, limit)
        acc = acc if training is None else val_accuracy(job, found)
    trained = training is not None
    return {"limit": limit, "ms": found.cost, "acc": acc, "holds": floor.holds(acc), "trained": trained}


def _last(job: Job, folder: Path, record: dict[str, Any], healing: Healing) -> Attempt:
    """The try that was chosen, trained if it has not been and the training does not harm, and measured.

    Thresholds with which it takes no less time than with fixed numbers of patches are switched off, unless it holds by its training alone.
    """
    found = _calibrated(job, folder, record["limit"], job.prunable)
    left, training = _trained(job, folder / "trained", found, record, healing)
    before, *times = job.measured([job.named.arch, *dict.fromkeys((found.arch, left.arch))])
    fixed, after = times[0], times[-1]
    if left.arch != found.arch and after[MEDIAN] >= fixed[MEDIAN] and not record["trained"]:
        say(
            f"with thresholds what is left takes {after[MEDIAN]:.4g} ms, and {fixed[MEDIAN]:.4g} ms without: they do not pay "
            f"on {job.table.target.name}, and fixed numbers of patches stay"
        )
        left, training = _trained(job, folder / "fixed", found, record, replace(healing, adaptive=False))
        after = fixed
    if after[MEDIAN] >= before[MEDIAN]:
        say("what is left takes no less time than the network as it is, which stays")
        return unchanged(job)
    return Attempt(left, (Taken(before, after),), training)


def _trained(
    job: Job, out: Path, found: Pruned, record: dict[str, Any], healing: Healing
) -> tuple[Pruned, dict[str, Any] | None]:
    """A try trained in `out`, unless that harms one that holds without; and what the training came to."""
    if not healing.changes:
        return found, None
    left, training = heal(job, found, out, healing, record["limit"])
    if training is not None:
        training["used"] = record["trained"] or val_accuracy(job, left) >= record["acc"]
        left = left if training["used"] else found
    return left, training


def _sweep(folder: Path, bracket: Bracket) -> None:
    """Remove tries that were passed over, also those that a killed process left."""
    for number in range(bracket.tries):
        if number != bracket.best and (folder / str(number)).exists():
            shutil.rmtree(folder / str(number))


def held(job: Job, found: Pruned, floor: Floor) -> float:
    """The accuracy of what is left on search-validation.

    Raises:
        BudgetError: it is further below the dense network's than may be.
    """
    acc = val_accuracy(job, found)
    if not floor.holds(acc):
        raise BudgetError(
            f"within the budget the accuracy on search-validation falls from {floor.dense:.4g} to {acc:.4g}, by more than "
            f"{floor.max_drop:g}; raise the budget or --max-drop, train longer, or find the fastest that holds by --max-drop alone"
        )
    return acc
