"""A network pruned for a budget, healed where that is asked for, and measured beside the dense one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from search_spaces.arch import Arch

__all__ = ["Attempt", "healed_within", "unchanged", "unchanged_within"]

TIMES = (
    3  # measurements of what is over the budget in the first, though it is to be within: one tells noise from a miss
)
TRIES = 3  # trainings of thresholds for a budget
ROOM = 0.99  # share of the budget that what is to be trained is held to: a file in another process was timed up to 1.1% apart


@dataclass(frozen=True)
class Attempt:
    """What is left of a network, its times, and before them those of the dense network in the same run."""

    found: Pruned
    before: Times
    after: Times
    training: dict[str, Any] | None = None  # what it came to, if there was one
    file: Delivered | None = None  # None where it is still to be made
    told: Mapping[str, float] = field(
        default_factory=dict
    )  # when it was chosen: `cheapest_ms`, and `file_ms` where files are timed

    def delivered(self, files: Files) -> Delivered:
        """Its file; one that has been timed is not timed again."""
        return self.file or files.delivered(self.found.arch, self.found.weights, self.told.get("file_ms"))


def healed_within(job: Job, files: Files, budget: float, healing: Healing) -> Attempt:
    """The network that is measured to be within the budget, as its file is; kept in `calibrated` of the run, and in `trained` after training.

    Raises:
        BudgetError: nothing that is left of the network holds the budget.
    """
    made: list[Delivered] = []
    room = ROOM * budget if healing.changes else budget

    def make() -> tuple[Pruned, list[Times]]:
        held = within(job, room, files)
        made.append(held.file)
        told = {"cheapest_ms": held.cheapest_ms, **({} if held.file.ms is None else {"file_ms": held.file.ms})}
        return held.found, [held.before, held.after, told]

    config = {"dense": job.source, "budget_ms": budget}
    found, (before, after, *rest) = saved(files.out / "calibrated", config, make)
    calibrated = Attempt(found, before, after, file=made[0] if made else None, told=rest[0] if rest else {})
    return _trained_within(job, files, calibrated, budget, healing) if healing.changes else calibrated


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
        if left.arch == calibrated.found.arch:
            before, after = calibrated.before, calibrated.after  # no time depends on weights
        else:
            before, after = _measured(job, [job.named.arch, left.arch], budget)
        taken = after["measured_ms"]
        if taken <= budget:
            file = _delivered(files, left, budget)
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
    least = calibrated.told.get("cheapest_ms")
    cheapest = "" if least is None else f"; the cheapest network of these blocks is predicted to take {least:.4g} ms"
    raise BudgetError(f"{over}{cheapest}; it is kept in {out}: measure again on a quieter machine, with --resume")


def unchanged(job: Job) -> Attempt:
    """The dense network as it is."""
    (times,) = job.measured([job.named.arch])
    return Attempt(job.dense(), times, times)


def unchanged_within(job: Job, files: Files, budget: float) -> Attempt | None:
    """The dense network as it is; None where measured again, or as a file, it is over the budget."""
    (times,) = _measured(job, [job.named.arch], budget)
    if times["measured_ms"] > budget:
        return None
    file = _delivered(files, job.dense(), budget)
    return None if file.over(budget) else Attempt(job.dense(), times, times, file=file)


def _measured(job: Job, archs: Sequence[Arch], budget: float) -> list[Times]:
    """Times of networks; where the last is over the budget, those of the median of some measurements."""
    runs: list[list[Times]] = []
    for _ in range(TIMES):
        runs.append(job.measured(archs))
        if len(runs) == 1 and runs[0][-1]["measured_ms"] <= budget:
            return runs[0]
    middle = median_low([run[-1]["measured_ms"] for run in runs])
    return next(run for run in runs if run[-1]["measured_ms"] == middle)


def _delivered(files: Files, found: Pruned, budget: float) -> Delivered:
    """The file of a network; where it is over the budget, with the median of some timings."""
    file = files.delivered(found.arch, found.weights)
    if file.ms is None or not file.over(budget):
        return file
    again = [files.delivered(found.arch, found.weights).ms or 0.0 for _ in range(TIMES - 1)]
    return replace(file, ms=median_low([file.ms, *again]))
