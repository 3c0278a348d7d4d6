"""`nas prune`: a trained ViT made faster on a target, by calibration alone, until the time measured is within the budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.prune import BudgetTooSmall, Prunable, Pruned, prepare
from nas.cost import macs, params
from nas.data import Data
from nas.data import load as load_data
from nas.errors import BudgetError
from nas.evaluate import accuracy, calibration_batches
from nas.latency import LatencyTable
from nas.networks import Named, network_named
from nas.peak_memory import peak_mb
from nas.progress import say
from nas.runs import Run, digest
from nas.tables import find_table, timed
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, BlockSpec
from search_spaces.errors import InputError
from search_spaces.spaces.remains import Remains
from search_spaces.states import State

__all__ = ["Milliseconds", "prune_network"]

TRIES = 6  # networks that are pruned and timed for a budget
SPARE = 0.995  # share of the budget that a solution after one above it aims at
PAYS = 0.5  # share of the MACs saved that must be saved in milliseconds, or the block is named


@dataclass(frozen=True)
class Milliseconds:
    """A table as what pruning may cost; see `compress.prune.Cost`."""

    table: LatencyTable

    def total(self, arch: Arch) -> float:
        """Milliseconds of a network."""
        return self.table.predict(arch).ms

    def block(self, spec: BlockSpec, state: State) -> float:
        """Milliseconds of a block."""
        return self.table.block_ms(spec, state)


@dataclass(frozen=True)
class Job:
    """What is to be pruned, and to what."""

    named: Named
    network: Network
    data: Data
    table: LatencyTable
    images: int
    seed: int

    def measured(self, archs: Sequence[Arch]) -> list[dict[str, float]]:
        """Milliseconds of networks in one interleaved run: the table's statistic, and the 90th percentile of the runs."""
        return [{"measured_ms": t.ms, "measured_p90_ms": t.p90} for t in timed(archs, self.table, self.seed)]

    def prunable(self) -> Prunable:
        """What the images tell of the network."""
        batches = calibration_batches(self.data, self.seed, self.images)
        return prepare(self.network, Milliseconds(self.table), batches, progress=lambda what: say(f"pruning: {what}"))


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
    job = _job(name, dataset, table, target, weights, images, seed, foreign)
    config = {
        "network": digest(job.network.state_dict()),
        "arch": job.named.arch.id,
        "data": dataset,
        "table": job.table.id,
        "budget_ms": budget_ms,
        "speedup": speedup,
        "images": images,
        "seed": seed,
    }
    run = Run.start(out, "prune", config, resume=resume)
    with run.locked():
        if run.summary is not None:
            return run.summary
        return run.finish(_pruned(job, run, budget_ms, speedup))


def _job(
    name: str,
    dataset: str,
    table: Path | None,
    target: str | None,
    weights: Path | None,
    images: int,
    seed: int,
    foreign: bool,
) -> Job:
    named = network_named(name, weights=weights)
    if named.network is None:
        raise InputError(
            f"{name} has no weights to prune; give a run, a checkpoint, timm:NAME, hf:NAME, or --weights FILE"
        )
    data = load_data(dataset, image_size=named.arch.image_size)
    if data.classes != named.arch.classes:
        raise InputError(
            f"{name} tells {named.arch.classes} classes apart, {data.name} has {data.classes}; fit it first: nas retrain {name} "
            f"--data {dataset}"
        )
    named = named.seeing(data)
    assert named.network is not None
    try:
        remains = Remains(named.arch)
    except ValueError as error:
        raise InputError(f"{name} cannot be pruned: {error}") from error
    prices = find_table(table, target, lambda: remains)
    prices.check_machine(foreign)
    lacking = prices.unpriced(remains.rows)
    if lacking:
        raise InputError(
            f"{prices.path.name} lacks {len(lacking)} rows of what may be left of {name}, such as {lacking[0].key}; pass "
            f"--target {prices.target.name} in its place, which measures them"
        )
    return Job(named, named.network, data, prices, images, seed)


def _pruned(job: Job, run: Run, budget_ms: float | None, speedup: float | None) -> dict[str, Any]:
    arch = job.named.arch
    (dense,) = job.measured([arch])
    budget = budget_ms if budget_ms is not None else dense["measured_ms"] / (speedup or 1.0)
    if dense["measured_ms"] <= budget:
        say(f"the network takes {dense['measured_ms']:.4g} ms as it is, within the budget of {budget:.4g} ms")
        ms = job.table.predict(arch).ms
        found, before, after = Pruned(arch, dict(job.network.state_dict()), ms, ms, 0.0, {}), dense, dense
    else:
        found, before, after = _within(job, budget)
    run.save_network(found.arch, found.weights)
    left = found.arch.build().eval()
    left.load_state_dict(found.weights)
    memory = dict(zip((arch, found.arch), peak_mb([arch, found.arch], job.table.target), strict=True))
    faster = before["measured_ms"] / after["measured_ms"]
    return {
        "budget_ms": budget,
        "predicted_ms": job.table.predict(found.arch).ms,
        "speedup_measured": faster,
        "speedup_macs": macs(arch) / macs(found.arch),
        "divergence": found.divergence,
        "before": _figures(arch, before, memory, accuracy(job.network, job.data, "test")),
        "after": _figures(found.arch, after, memory, accuracy(left, job.data, "test")),
        "blocks": _blocks(job, found),
        "arch": str(run.path / "arch.json"),
        "weights": str(run.path / "weights.safetensors"),
    }


def _figures(arch: Arch, times: dict[str, float], memory: dict[Arch, float], acc: float) -> dict[str, Any]:
    return {"params": params(arch), "macs": macs(arch), **times, "peak_mb": memory[arch], "acc": acc}


def _within(job: Job, budget: float) -> tuple[Pruned, dict[str, float], dict[str, float]]:
    """The network that is measured to be within the budget, its times, and before them those of the dense one in the same run."""
    limit, prunable = budget, job.prunable()
    for _ in range(TRIES):
        try:
            found = prunable.within(limit)
        except BudgetTooSmall as error:
            raise BudgetError(
                f"the cheapest network of these blocks is predicted to take {error.cheapest:.4g} ms; raise the budget, or prune a "
                "smaller network"
            ) from error
        before, after = job.measured([job.named.arch, found.arch])
        if after["measured_ms"] <= budget:
            return found, before, after
        say(f"measured {after['measured_ms']:.4g} ms, over the budget of {budget:.4g} ms: pruning further")
        limit *= SPARE * budget / after["measured_ms"]
    raise BudgetError(
        f"after {TRIES} tries the network takes {after['measured_ms']:.4g} ms, above {budget:.4g} ms; the table and the clock "
        "disagree: measure with --fresh on a quieter machine, or raise the budget"
    )


def _blocks(job: Job, found: Pruned) -> list[dict[str, Any]]:
    """What became of each block, and shares of its MACs and predicted milliseconds; those where MACs fell and time did not are named."""
    arch, cost, rows = job.named.arch, Milliseconds(job.table), []
    left = iter(spec for spec in found.arch.blocks if isinstance(spec, MB3D))
    for position, (spec, state) in enumerate(arch.steps()):
        if not isinstance(spec, MB3D):
            continue
        now = None if found.sizes.get(position, spec) is None else next(left)
        work = 0.0 if now is None else now.macs(state) / spec.macs(state)
        ms = 0.0 if now is None else cost.block(now, state) / cost.block(spec, state)
        if 1 - ms < PAYS * (1 - work):
            say(f"block {position}: MACs fell to {work:.0%}, milliseconds to {ms:.0%}")
        rows.append({"block": position, "left": "" if now is None else now.label, "macs_share": work, "ms_share": ms})
    return rows
