"""A network pruned for a budget, healed where that is asked for, and measured beside the dense one, on each target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

from compress.prune import Pruned
from nas.errors import BudgetError
from nas.files import read_json, write_json
from nas.progress import say
from nas.pruning.choice import SPARE, Held, within
from nas.pruning.files import Delivered, Files, FileTimes
from nas.pruning.heal import Healing, heal, with_thresholds
from nas.pruning.job import Job
from nas.pruning.judge import harmed
from nas.pruning.places import Budgets, Taken, exceeded, told
from nas.pruning.saved import Times, remembered, saved, steadiness
from search_spaces.arch import Arch

__all__ = ["Attempt", "healed_within", "unchanged", "unchanged_within"]

TIMES = (
    3  # measurements of what is over the budget in the first, though it is to be within: one tells noise from a miss
)
TRIES = 3  # trainings of thresholds for a budget
ROOM = 0.99  # share of the budget that what is to be trained is held to: a file in another process was timed up to 1.1% apart


@dataclass(frozen=True)
class Attempt:
    """What is left of a network, and what it takes on each target."""

    found: Pruned
    taken: tuple[Taken, ...]
    training: dict[str, Any] | None = None  # what it came to, if there was one

    def delivered(self, places: Sequence[Files]) -> tuple[Taken, ...]:
        """What it takes, with its file on each target; one that has been timed is not timed again."""
        return tuple(
            replace(one, file=one.file or place.delivered(self.found.arch, self.found.weights, _remembered(one)))
            for one, place in zip(self.taken, places, strict=True)
        )


def healed_within(places: Sequence[Files], budgets: Budgets, healing: Healing) -> Attempt:
    """The network that is measured to be within the budget of each target, as its files are; kept in `calibrated` of the run, and in `trained` after training.

    Raises:
        BudgetError: nothing that is left of the network holds the budgets.
    """
    made: list[Held] = []
    room = tuple(ROOM * budget for budget in budgets) if healing.changes else budgets

    def make() -> tuple[Pruned, list[Times]]:
        made.append(within(places, room))
        return made[0].found, [times for one in made[0].taken for times in one.recorded]

    most = budgets[0] if len(budgets) == 1 else [*budgets]
    # Older runs held another statistic, and are not gone on with.
    config = {"dense": places[0].job.source, "budget_ms": most, "held_by": "median"}
    found, times = saved(places[0].out / "calibrated", config, make)
    calibrated = Attempt(found, made[0].taken if made else Taken.read(times))
    return _trained_within(places, calibrated, budgets, healing) if healing.changes else calibrated


def _trained_within(places: Sequence[Files], calibrated: Attempt, budgets: Budgets, healing: Healing) -> Attempt:
    """What calibration gave, trained, unless that harms; with thresholds where they are asked for and pay."""
    job, out = places[0].job, places[0].out / "trained"
    if healing.adaptive:
        found = _with_thresholds(places, calibrated, budgets, healing)
        if found is not None:
            return found
        calibrated, healing = _unfiled(calibrated), replace(healing, adaptive=False)
        if not healing.changes:
            return replace(calibrated, training={"epochs": 0, "adaptive": True, "used": False})
    left, training = heal(job, calibrated.found, out, healing, budgets[0])
    assert training is not None, "there are epochs"
    if harmed(job, calibrated.found, left):
        say(
            "training made it worse on search-validation: what calibration alone gave stays; train longer, or with a lower --lr"
        )
        return replace(calibrated, training={**training, "used": False})
    taken = _delivered(places, calibrated.taken, left, budgets)  # no time depends on weights
    over = exceeded([one.file_ms for one in taken], budgets)
    if not over:
        return Attempt(left, taken, {**training, "used": True})
    least = {
        number: one.told["cheapest_ms"] for number, one in enumerate(calibrated.taken) if "cheapest_ms" in one.told
    }
    cheapest = f"; the cheapest network of these blocks is predicted to take {told(least, places)}" if least else ""
    raise BudgetError(
        f"trained, the network takes {_above(over, budgets, places)}{cheapest}; it is kept in {out}: measure again on a quieter machine, "
        "with --resume"
    )


def _with_thresholds(
    places: Sequence[Files], calibrated: Attempt, budgets: Budgets, healing: Healing
) -> Attempt | None:
    """What calibration gave, with thresholds; where they let it take too long they are set once more for less.

    None where they do not pay or do harm, which is said, and found again after a kill.
    """
    job, files = places[0].job, places[0].out
    off = files / "thresholds-off.json"
    if off.exists():
        say(read_json(off))
        return None
    limit, found = SPARE * budgets[0] * steadiness(calibrated.taken[0].after), calibrated.found
    for number in range(1, TRIES + 1):
        out = files / ("thresholds" if number == 1 else f"thresholds-{number}")
        made = with_thresholds(job, found, out, healing, limit)
        if made is None:
            return None
        left, training = made
        if harmed(job, calibrated.found, left):
            line = "thresholds make it worse on search-validation"
            break
        taken = _taken(places, [job.named.arch, left.arch], budgets)
        over = exceeded([one.ms for one in taken], budgets)
        if not over:
            taken = _delivered(places, taken, left, budgets)
            over = exceeded([one.file_ms for one in taken], budgets)
            if not over:
                return Attempt(left, taken, {**training, "used": True})
        line = f"with thresholds, the network takes {_above(over, budgets, places)}"
        if number < TRIES:
            say(f"{line}: they are set for less")
            share = min(budgets[place] / ms for place, ms in over.items())
            limit = remembered(files / f"limit-{number}.json", limit * SPARE * share)
            found = left
    line += f": they do not pay on {job.table.target.name}, and fixed numbers of patches stay"
    write_json(off, line)
    say(line)
    return None


def _above(over: Mapping[int, float], budgets: Budgets, places: Sequence[Files]) -> str:
    """What is over its budget, by the number of its target, as a message has it."""
    return f"{told(over, places)}, over the budget of {told({number: budgets[number] for number in over}, places)}"


def _unfiled(attempt: Attempt) -> Attempt:
    """The same where its files have been written over."""
    return replace(attempt, taken=tuple(replace(one, file=None) for one in attempt.taken))


def unchanged(job: Job) -> Attempt:
    """The dense network as it is, on one target."""
    (times,) = job.measured([job.named.arch])
    return Attempt(job.dense(), (Taken(times, times),))


def unchanged_within(places: Sequence[Files], budgets: Budgets) -> Attempt | None:
    """The dense network as it is; None where measured again, or as a file, it is over the budget of a target."""
    dense = places[0].job.dense()
    taken = _taken(places, [dense.arch], budgets)
    if exceeded([one.ms for one in taken], budgets):
        return None
    taken = _delivered(places, taken, dense, budgets)
    return None if exceeded([one.file_ms for one in taken], budgets) else Attempt(dense, taken)


def _taken(places: Sequence[Files], archs: Sequence[Arch], budgets: Budgets) -> tuple[Taken, ...]:
    """What the last of networks takes on each target, beside the first."""
    runs = [_measured(place.job, archs, budget) for place, budget in zip(places, budgets, strict=True)]
    return tuple(Taken(run[0], run[-1]) for run in runs)


def _delivered(places: Sequence[Files], taken: Sequence[Taken], found: Pruned, budgets: Budgets) -> tuple[Taken, ...]:
    """What a network takes, with its file on each target."""
    each = zip(places, taken, budgets, strict=True)
    return tuple(replace(one, file=_file(place, found, budget)) for place, one, budget in each)


def _measured(job: Job, archs: Sequence[Arch], budget: float) -> list[Times]:
    """Times of networks; where the last is over the budget, those of the median of some measurements."""
    runs: list[list[Times]] = []
    for _ in range(TIMES):
        runs.append(job.measured(archs))
        if len(runs) == 1 and runs[0][-1]["measured_median_ms"] <= budget:
            return runs[0]
    middle = median_low([run[-1]["measured_median_ms"] for run in runs])
    return next(run for run in runs if run[-1]["measured_median_ms"] == middle)


def _remembered(taken: Taken) -> FileTimes | None:
    """What the file of a network took when it was chosen."""
    ms, median_ms = (taken.told.get(name) for name in ("file_ms", "file_median_ms"))
    return None if ms is None or median_ms is None else FileTimes(ms, median_ms)


def _file(files: Files, found: Pruned, budget: float) -> Delivered:
    """The file of a network; where it is over the budget, with the median of some timings."""
    files_made = [files.delivered(found.arch, found.weights)]
    if not files_made[0].over(budget):
        return files_made[0]
    files_made += [files.delivered(found.arch, found.weights) for _ in range(TIMES - 1)]
    return sorted(files_made, key=lambda file: file.times.median_ms if file.times else 0.0)[TIMES // 2]
