"""A network pruned for a budget, healed where that is asked for, and measured beside the dense one."""

from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

from compress.prune import Pruned
from nas.errors import BudgetError
from nas.progress import say
from nas.pruning.choice import SPARE, within
from nas.pruning.files import Delivered, Files
from nas.pruning.heal import Healing, heal
from nas.pruning.job import Job
from nas.pruning.judge import harmed
from nas.pruning.saved import Times, remembered, saved

__all__ = ["Attempt", "healed_within", "unchanged"]

TIMES = 3  # measurements of a trained network that is over the budget in the first: one tells noise from a miss
TRIES = 3  # trainings of thresholds for a budget


@dataclass(frozen=True)
class Attempt:
    """What is left of a network, its times, and before them those of the dense network in the same run."""

    found: Pruned
    before: Times
    after: Times
    training: dict[str, Any] | None = None  # what it came to, if there was one
    file: Delivered | None = None  # None where it is still to be made


def healed_within(job: Job, files: Files, budget: float, healing: Healing) -> Attempt:
    """The network that is measured to be within the budget, as its file is; kept in `calibrated` of the run, and in `trained` after training.

    Raises:
        BudgetError: nothing that is left of the network holds the budget.
    """
    made: list[Delivered] = []
    # Another measurement of the same network is to hold the budget as well.
    room = SPARE * budget if healing.changes else budget

    def make() -> tuple[Pruned, list[Times]]:
        found, before, after, file = within(job, room, files)
        made.append(file)
        return found, [before, after]

    config = {"dense": job.source, "budget_ms": budget}
    found, (before, after) = saved(files.out / "calibrated", config, make)
    calibrated = Attempt(found, before, after, file=made[0] if made else None)
    if healing.changes:
        return _trained_within(job, files, calibrated, budget, healing)
    return calibrated if made else replace(calibrated, file=_within(files.delivered(found.arch, found.weights), budget))


def _within(file: Delivered, budget: float) -> Delivered:
    """A file that was timed once more.

    Raises:
        BudgetError: it takes longer now.
    """
    if file.over(budget):
        raise BudgetError(
            f"the exported file takes {file.ms:.4g} ms, over the budget of {budget:.4g} ms; it is kept: measure again on a quieter "
            "machine, with --resume"
        )
    return file


def _trained_within(job: Job, files: Files, calibrated: Attempt, budget: float, healing: Healing) -> Attempt:
    """What calibration gave, trained, unless that harms; where thresholds let it take too long, once more for less."""
    limit, found = SPARE * budget if healing.adaptive else budget, calibrated.found
    for number in range(1, TRIES + 1):
        out = files.out / ("trained" if number == 1 else f"trained-{number}")
        left, training = heal(job, found, out, healing, limit)
        file = calibrated.file if number == 1 else None  # written over by then
        if training is None:
            return replace(calibrated, file=file)
        if harmed(job, calibrated.found, left):
            what = "training made it worse" if healing.epochs else "thresholds make it worse"
            say(f"{what} on search-validation: what calibration alone gave stays; train longer, or with a lower --lr")
            return replace(calibrated, training={**training, "used": False}, file=file)
        training["used"] = True
        before, after = _measured(job, left, budget)
        taken = after["measured_ms"]
        if taken <= budget:
            file = files.delivered(left.arch, left.weights)
            if not file.over(budget):
                return Attempt(left, before, after, training, file)
            assert file.ms is not None
            taken = file.ms
        over = f"{'trained' if healing.epochs else 'with thresholds'}, the network takes {taken:.4g} ms, over the budget of {budget:.4g} ms"
        if left.arch == found.arch:
            break
        say(f"{over}: thresholds are set for less")
        limit = remembered(files.out / f"limit-{number}.json", limit * SPARE * budget / taken)
        found = left
    raise BudgetError(f"{over}; it is kept in {out}: measure again on a quieter machine, with --resume")


def unchanged(job: Job) -> Attempt:
    """The dense network as it is."""
    (times,) = job.measured([job.named.arch])
    return Attempt(job.dense(), times, times)


def _measured(job: Job, found: Pruned, budget: float) -> tuple[Times, Times]:
    """Times of the dense network and of what is left; over the budget, those of the median of some measurements."""
    runs: list[tuple[Times, Times]] = []
    for _ in range(TIMES):
        before, after = job.measured([job.named.arch, found.arch])
        runs.append((before, after))
        if len(runs) == 1 and after["measured_ms"] <= budget:
            return before, after
    middle = median_low([after["measured_ms"] for _, after in runs])
    return next(run for run in runs if run[1]["measured_ms"] == middle)
