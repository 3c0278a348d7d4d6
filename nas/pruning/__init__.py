"""`nas prune`: a trained ViT made faster on a target until the time measured, or the accuracy lost, is what may be."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.dense import network_of
from compress.prune import check_parts
from nas.data import Data
from nas.networks import Named
from nas.processes import processes
from nas.progress import say
from nas.pruning.attempt import healed_within, unchanged_within
from nas.pruning.files import Files
from nas.pruning.floor import fastest, held
from nas.pruning.goal import Floor, Goal
from nas.pruning.heal import Healing, healer
from nas.pruning.job import Job, Milliseconds, job_of
from nas.pruning.judge import val_accuracy
from nas.pruning.outcome import outcome
from nas.pruning.page import KEPT, write_pruned
from nas.pruning.pictures import write_kept
from nas.pruning.places import Taken, exceeded, places_of, told, where
from nas.pruning.rivals import rival_rows
from nas.pruning.saved import steadiness
from nas.runs import Run
from nas.scratch import scratch_dir
from nas.target import Target
from nas.train.loop import check_batch
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.spaces.frames import PARTS, in_frame, whole_frame

__all__ = ["PARTS", "Goal", "Healing", "Milliseconds", "prune_network"]

CALIBRATION = Healing()
AGREE = 0.05  # share by which the times of a file and of its network may differ


def prune_network(
    name: str,
    dataset: str,
    out: Path,
    *,
    table: Path | Sequence[Path] | None = None,
    target: str | Sequence[str] | None = None,
    budget_ms: float | Sequence[float] | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    healing: Healing = CALIBRATION,
    weights: Path | None = None,
    images: int = 256,
    parts: tuple[str, ...] = PARTS,
    seed: int = 0,
    foreign: bool = False,
    baselines: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas prune`: `before` and `after`, each `params`, `macs`, `measured_ms`, `peak_mb`, `acc`, and the run's files.

    The rows that the target's table lacks for this network's sizes are measured first. A network over the budget is pruned
    further: the prediction's limit is lowered by what it was exceeded by; so is one whose file is. Of several tables and targets the first is the main
    one, and budgets, one for all or one each, hold on every one: `targets`. Where the data has other classes than the network, a
    classifier is fitted first. Accuracies are on the test split, read once at the end; what `max_drop` allows is of
    search-validation. Images without labels have no accuracy: `agreement` is the share on which the best class is the dense network's.
    With `baselines` its rivals are there, too.

    Raises:
        InputError: no such network or data, no weights, no or too many goals, or settings that do not fit, or that need labels
            which are not there.
        BudgetError: nothing that is left of the network holds the budget, or none that does holds the accuracy.
    """
    budgets = () if budget_ms is None else (budget_ms,) if isinstance(budget_ms, float | int) else tuple(budget_ms)
    goal = Goal(budgets, speedup, max_drop)
    if images < 1:
        raise InputError(f"--images must be at least 1, got {images}")
    parts = tuple(one for one in check_parts(parts) if not healing.adaptive or one not in ("fusing", "merging"))
    if processes() > 1:
        raise InputError("nas prune is of one process; start it without torchrun, and train at length by nas retrain")
    if healing.adaptive and "tokens" not in parts:
        raise InputError("--adaptive is of patches that are dropped; add tokens to --parts")
    labels_for = "--max-drop" if max_drop is not None else "--train-epochs" if healing.epochs else None
    Run.check_free(out, resume=resume)

    def check(named: Named, data: Data, targets: Sequence[Target]) -> None:
        _check_targets(goal, healing, baselines, targets)
        _check_healing(named.arch, data, targets[0], goal, healing, seed)

    job = job_of(name, dataset, table, target, weights, images, parts, seed, foreign, labels_for, check)
    config = {
        "network": job.source,
        "arch": job.named.arch.id,
        "data": dataset,
        "table": job.table.path.name,  # it may have got rows for other parts since
        **({"tables_beside": [one.path.name for one in job.beside]} if job.beside else {}),
        "budget_ms": [*budgets] if len(budgets) > 1 else next(iter(budgets), None),
        "speedup": speedup,
        "images": images,
        "parts": sorted(parts),
        "seed": seed,
        "max_drop": max_drop,
        "healing": healing.described(),
        **({"baselines": True} if baselines else {}),
    }
    run = Run.start(out, "prune", config, resume=resume)
    with run.locked():
        if run.summary is not None:
            return run.summary
        fitted = job.fitted(out / "dense")
        with tempfile.TemporaryDirectory(prefix="prune-", dir=scratch_dir()) as scratch:
            places = places_of(fitted, out, Path(scratch))
            summary = _pruned(fitted, run, goal, healing, places, name if baselines else None)
        summary["fitted_head"] = str(out / "dense") if job.own_head else None
        write_pruned(run.path, summary)
        return run.finish(summary)


def _check_targets(goal: Goal, healing: Healing, baselines: bool, targets: Sequence[Target]) -> None:
    """Refuse what is of one target alone, of several."""
    goal.check(len(targets))
    given = [flag for flag, value in {"--adaptive": healing.adaptive, "--baselines": baselines}.items() if value]
    if given and len(targets) > 1:
        raise InputError(
            f"{given[0]} is of one target, and there are {len(targets)}; leave it out, or give one --table or --target"
        )


def _check_healing(arch: Arch, data: Data, target: Target, goal: Goal, healing: Healing, seed: int) -> None:
    """Refuse, before anything is begun, what would fail at its end."""
    if goal.max_drop is not None and arch.encoder:
        raise InputError("--max-drop is of accuracy, which an encoder without a classifier has none of; give a budget")
    if healing.adaptive:
        dropping = in_frame(arch, replace(whole_frame(arch), keeps=((1, 1),)))
        target.check_runs(dropping.keeping(adaptive=True))
    if healing.epochs:
        check_batch(healing.recipe(arch, seed), data)


def _pruned(
    job: Job, run: Run, goal: Goal, healing: Healing, places: Sequence[Files], rivals_of: str | None
) -> dict[str, Any]:
    """The summary, with the rivals of the network that the user called `rivals_of`; None for no rivals."""
    dense_ms = [place.dense_times["measured_median_ms"] for place in places]
    budgets = goal.budgets(dense_ms)
    floor = None if goal.max_drop is None else Floor(goal.max_drop, val_accuracy(job, job.dense()))
    more: dict[str, Any] = {}
    if budgets is None:
        assert floor is not None, "a goal without a budget has a floor"
        attempt, more["tries"] = fastest(job, run.path / "tries", floor, healing)
    else:
        dense = None if exceeded(dense_ms, budgets) else unchanged_within(places, budgets)
        if dense is not None:
            as_it_is, most = (told(dict(enumerate(times)), places) for times in (dense_ms, budgets))
            say(f"the network takes {as_it_is} as it is, within the budget of {most}")
        attempt = dense or healed_within(places, budgets, healing)
    found = attempt.found
    if floor is not None:
        more |= {"max_drop": floor.max_drop, "val_acc": {"before": floor.dense, "after": held(job, found, floor)}}
    taken = attempt.delivered(places)
    for place, one in zip(places, taken, strict=True):
        _say_file(one, where(place, places))
    run.save_network(found.arch, found.weights)
    kept = write_kept(network_of(found.arch, found.weights), job.data, run.path / KEPT)
    heal_rival = healer(job, run.path / "rivals", healing)
    first, file = taken[0], taken[0].file
    assert file is not None, "it was delivered"
    most_ms = first.after["measured_ms"] if budgets is None else budgets[0] * steadiness(first.after)
    return {
        **outcome(job, found, budgets, taken),
        "training": attempt.training,
        **more,
        **file.summary(first.after["measured_ms"]),
        "baselines": [] if rivals_of is None else rival_rows(job, rivals_of, found, most_ms, places[0], heal_rival),
        "arch": str(run.path / "arch.json"),
        "weights": str(run.path / "weights.safetensors"),
        "kept": None if kept is None else str(kept),
        "report": str(run.path / "report.html"),
    }


def _say_file(taken: Taken, on: str) -> None:
    """Say where a file takes another time than the network did."""
    if taken.file is None or taken.file.times is None:
        return
    ms, before = taken.file.times.ms, taken.after["measured_ms"]
    if abs(ms / before - 1) > AGREE:
        say(
            f"the exported file takes {ms:.4g} ms{on} in a process of its own, {ms / before - 1:+.1%} from what was measured before"
        )
