"""`nas prune`: a trained ViT made faster on a target, by calibration alone, until the time measured is within the budget."""

import tempfile
from pathlib import Path
from typing import Any

from compress.prune import Pruned
from nas.progress import say
from nas.pruning.choice import within
from nas.pruning.files import Files, built
from nas.pruning.job import Job, Milliseconds, job_of
from nas.pruning.outcome import outcome
from nas.pruning.page import KEPT, write_pruned
from nas.pruning.pictures import write_kept
from nas.pruning.rivals import rival_rows
from nas.runs import Run, digest
from nas.scratch import scratch_dir
from search_spaces.errors import InputError

__all__ = ["Milliseconds", "prune_network"]


def prune_network(
    name: str,
    dataset: str,
    out: Path,
    *,
    table: Path | None = None,
    target: str | None = None,
    budget_ms: float | None = None,
    speedup: float | None = None,
    weights: Path | None = None,
    images: int = 256,
    seed: int = 0,
    foreign: bool = False,
    baselines: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas prune`: `before` and `after`, each `params`, `macs`, `measured_ms`, `peak_mb`, `acc`, and the run's files.

    The rows that the target's table lacks for this network's sizes are measured first. A network over the budget, or whose file
    is, is pruned further: the prediction's limit is lowered by what it was exceeded by. With `baselines` its rivals are there, too.
    Accuracies are on the test split, read once at the end.

    Raises:
        InputError: no such network or data, no weights, another number of classes, or neither or both of budget and speed-up.
        BudgetError: nothing that is left of the network holds the budget.
    """
    if (budget_ms is None) == (speedup is None):
        raise InputError("give either --budget-ms MS or --speedup X")
    if speedup is not None and not 1 < speedup < float("inf"):
        raise InputError(f"--speedup must be above 1 and finite, got {speedup:g}")
    if budget_ms is not None and not 0 < budget_ms < float("inf"):
        raise InputError(f"--budget-ms must be positive and finite, got {budget_ms:g}")
    if images < 1:
        raise InputError(f"--images must be at least 1, got {images}")
    job = job_of(name, dataset, table, target, weights, images, seed, foreign)
    config = {
        "network": digest(job.network.state_dict()),
        "arch": job.named.arch.id,
        "data": dataset,
        "table": job.table.id,
        "budget_ms": budget_ms,
        "speedup": speedup,
        "images": images,
        "seed": seed,
        **({"baselines": True} if baselines else {}),
    }
    run = Run.start(out, "prune", config, resume=resume)
    with run.locked():
        if run.summary is not None:
            return run.summary
        with tempfile.TemporaryDirectory(prefix="prune-", dir=scratch_dir()) as scratch:
            files = Files(job, run.path, Path(scratch))
            summary = _pruned(job, run, budget_ms, speedup, files, name if baselines else None)
        write_pruned(run.path, summary)
        return run.finish(summary)


def _pruned(
    job: Job, run: Run, budget_ms: float | None, speedup: float | None, files: Files, rivals_of: str | None
) -> dict[str, Any]:
    """The summary, with the rivals of the network that the user called `rivals_of`; None for no rivals."""
    arch = job.named.arch
    (dense,) = job.measured([arch])
    budget = budget_ms if budget_ms is not None else dense["measured_ms"] / (speedup or 1.0)
    if dense["measured_ms"] <= budget:
        say(f"the network takes {dense['measured_ms']:.4g} ms as it is, within the budget of {budget:.4g} ms")
        ms = job.table.predict(arch).ms
        found, before, after = Pruned(arch, dict(job.network.state_dict()), ms, ms, 0.0, {}), dense, dense
        file = files.delivered(arch, found.weights)
    else:
        found, before, after, file = within(job, budget, files)
    run.save_network(found.arch, found.weights)
    kept = write_kept(built(found.arch, found.weights), job.data, run.path / KEPT)
    return {
        **outcome(job, found, budget, before, after),
        **file.summary(after["measured_ms"]),
        "baselines": [] if rivals_of is None else rival_rows(job, rivals_of, found, budget, files),
        "arch": str(run.path / "arch.json"),
        "weights": str(run.path / "weights.safetensors"),
        "kept": None if kept is None else str(kept),
        "report": str(run.path / "report.html"),
    }
