"""`nas prune`: a trained ViT made faster on a target until the time measured, or the accuracy lost, is what may be."""

from pathlib import Path
from typing import Any

from nas.errors import BudgetError
from nas.progress import say
from nas.pruning.attempt import Attempt, healed_within, unchanged
from nas.pruning.floor import fastest
from nas.pruning.goal import Floor, Goal
from nas.pruning.heal import Healing
from nas.pruning.job import Job, Milliseconds, job_of
from nas.pruning.outcome import outcome
from nas.pruning.saved import remembered
from nas.runs import Run
from search_spaces.errors import InputError

__all__ = ["Goal", "Healing", "Milliseconds", "prune_network"]

CALIBRATION = Healing()


def prune_network(
    name: str,
    dataset: str,
    out: Path,
    *,
    table: Path | None = None,
    target: str | None = None,
    budget_ms: float | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    healing: Healing = CALIBRATION,
    weights: Path | None = None,
    images: int = 256,
    seed: int = 0,
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas prune`: `before` and `after`, each `params`, `macs`, `measured_ms`, `peak_mb`, `acc`, and the run's files.

    The rows that the target's table lacks for this network's sizes are measured first. A network over the budget is pruned
    further: the prediction's limit is lowered by what it was exceeded by. Where the data has other classes than the network, a
    classifier is fitted first. Accuracies are on the test split, read once at the end; what `max_drop` allows is of
    search-validation.

    Raises:
        InputError: no such network or data, no weights, no or too many goals, or settings that do not fit.
        BudgetError: nothing that is left of the network holds the budget, or none that does holds the accuracy.
    """
    goal = Goal(budget_ms, speedup, max_drop)
    if images < 1:
        raise InputError(f"--images must be at least 1, got {images}")
    job = job_of(name, dataset, table, target, weights, images, seed, foreign)
    _check_healing(job, goal, healing)
    config = {
        "network": job.source,
        "arch": job.named.arch.id,
        "data": dataset,
        "table": job.table.id,
        "budget_ms": budget_ms,
        "speedup": speedup,
        "images": images,
        "seed": seed,
        "max_drop": max_drop,
        "healing": healing.described(),
    }
    run = Run.start(out, "prune", config, resume=resume)
    with run.locked():
        if run.summary is not None:
            return run.summary
        fitted = str(out / "dense") if job.own_head else None
        return run.finish({**_pruned(job.fitted(out / "dense"), run, goal, healing), "fitted_head": fitted})


def _check_healing(job: Job, goal: Goal, healing: Healing) -> None:
    """Refuse, before anything is begun, what would fail at its end."""
    if goal.max_drop is not None and job.encoder:
        raise InputError("--max-drop is of accuracy, which an encoder without a classifier has none of; give a budget")
    if healing.epochs:
        recipe = healing.recipe(job.named.arch, job.seed)
        if job.data.size("train") < recipe.batch_size:
            raise InputError(
                f"{job.data.name} has {job.data.size('train')} training images, fewer than a batch of {recipe.batch_size}; give a "
                "smaller --batch-size"
            )


def _pruned(job: Job, run: Run, goal: Goal, healing: Healing) -> dict[str, Any]:
    dense_ms = remembered(run.path / "dense-ms.json", lambda: job.measured([job.named.arch])[0]["measured_ms"])
    budget = goal.budget(dense_ms)
    floor = _floor(job, goal)
    told: dict[str, Any] = {}
    if budget is None:
        assert floor is not None, "a goal without a budget has a floor"
        attempt, told["tries"] = fastest(job, run.path / "tries", floor, healing)
    elif dense_ms <= budget:
        say(f"the network takes {dense_ms:.4g} ms as it is, within the budget of {budget:.4g} ms")
        attempt = unchanged(job)
    else:
        attempt = healed_within(job, run.path, budget, healing)
    if floor is not None:
        told |= {"max_drop": floor.max_drop, "val_acc": {"before": floor.dense, "after": _held(job, attempt, floor)}}
    found = attempt.found
    run.save_network(found.arch, found.weights)
    return {
        **outcome(job, found, budget, attempt.before, attempt.after),
        "training": attempt.training,
        **told,
        "arch": str(run.path / "arch.json"),
        "weights": str(run.path / "weights.safetensors"),
    }


def _floor(job: Job, goal: Goal) -> Floor | None:
    if goal.max_drop is None:
        return None
    return Floor(goal.max_drop, job.val_accuracy(job.dense()))


def _held(job: Job, attempt: Attempt, floor: Floor) -> float:
    """The accuracy on search-validation.

    Raises:
        BudgetError: it is further below the dense network's than may be.
    """
    found = job.val_accuracy(attempt.found)
    if not floor.holds(found):
        raise BudgetError(
            f"within the budget the accuracy on search-validation falls from {floor.dense:.4g} to {found:.4g}, by more than "
            f"{floor.max_drop:g}; raise the budget or --max-drop, or train longer"
        )
    return found
