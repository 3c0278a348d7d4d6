"""`nas prune`: a trained ViT made faster on a target, by calibration alone, until the time measured is within the budget."""

from pathlib import Path
from typing import Any

from compress.prune import Pruned, check_parts
from nas.progress import say
from nas.pruning.choice import within
from nas.pruning.job import Job, Milliseconds, job_of
from nas.pruning.outcome import outcome
from nas.runs import Run, digest
from search_spaces.errors import InputError
from search_spaces.spaces.frames import PARTS, whole_frame

__all__ = ["PARTS", "Milliseconds", "prune_network"]


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
    parts: tuple[str, ...] = PARTS,
    seed: int = 0,
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas prune`: `before` and `after`, each `params`, `macs`, `measured_ms`, `peak_mb`, `acc`, and the run's files.

    The rows that the target's table lacks for this network's sizes are measured first. A network over the budget is pruned
    further: the prediction's limit is lowered by what it was exceeded by. Accuracies are on the test split, read once at the end.

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
    job = job_of(name, dataset, table, target, weights, images, check_parts(parts), seed, foreign)
    config = {
        "network": digest(job.network.state_dict()),
        "arch": job.named.arch.id,
        "data": dataset,
        "table": job.table.id,
        "budget_ms": budget_ms,
        "speedup": speedup,
        "images": images,
        "parts": sorted(parts),
        "seed": seed,
    }
    run = Run.start(out, "prune", config, resume=resume)
    with run.locked():
        if run.summary is not None:
            return run.summary
        return run.finish(_pruned(job, run, budget_ms, speedup))


def _pruned(job: Job, run: Run, budget_ms: float | None, speedup: float | None) -> dict[str, Any]:
    arch = job.named.arch
    (dense,) = job.measured([arch])
    budget = budget_ms if budget_ms is not None else dense["measured_ms"] / (speedup or 1.0)
    if dense["measured_ms"] <= budget:
        say(f"the network takes {dense['measured_ms']:.4g} ms as it is, within the budget of {budget:.4g} ms")
        ms = job.table.predict(arch).ms
        found, before, after = (
            Pruned(arch, dict(job.network.state_dict()), ms, ms, 0.0, {}, whole_frame(arch)),
            dense,
            dense,
        )
    else:
        found, before, after = within(job, budget)
    run.save_network(found.arch, found.weights)
    return {
        **outcome(job, found, budget, before, after),
        "arch": str(run.path / "arch.json"),
        "weights": str(run.path / "weights.safetensors"),
    }
