"""What pruning came to: figures before and after, and block by block."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from compress.dense import network_of
from compress.prune import Pruned
from nas.cost import macs, params
from nas.peak_memory import peak_mb
from nas.progress import say
from nas.pruning.job import Job, Milliseconds
from nas.pruning.judge import judged, right
from nas.pruning.places import Budgets, Taken
from nas.train.features import mean_distance
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D

__all__ = ["near_chance", "outcome"]

PAYS = 0.5  # share of the MACs saved that must be saved in milliseconds, or the block is named
GUESSED, MOST_GUESSED = 2.0, 0.5  # times guessing's accuracy, below which nothing was learned; at most that
TELLING = 20  # images by which that can be told


def outcome(job: Job, found: Pruned, budgets: Budgets | None, taken: Sequence[Taken]) -> dict[str, Any]:
    """The summary of a run, but for its files; the test split is read here, once.

    Args:
        job: what was pruned.
        found: what is left of it.
        budgets: in ms, if there are any.
        taken: what that takes on each target, beside the dense network.
    """
    before, after = taken[0].before, taken[0].after
    arch, quality = job.named.arch, _quality(job, job.network)
    acc = quality["acc"]
    if acc is not None and near_chance(acc, arch.classes, job.data.size("test")):
        say(
            f"the network itself is right on {acc:.1%} of the test images, near chance for {arch.classes} classes: it may have "
            f"been trained on others than those of {job.data.name}, or on these in another order"
        )
    if found.surrogate is not None:
        say(
            f"the sum of losses promised a divergence of {found.surrogate.promised:.3g}; {found.divergence:.3g} came of it"
        )
    left = network_of(found.arch, found.weights)
    memory = dict(zip((arch, found.arch), peak_mb([arch, found.arch], job.table.target), strict=True))
    return {
        "target": job.table.target.name,
        "statistic": job.table.statistic,
        "budget_ms": None if budgets is None else budgets[0],
        "predicted_ms": found.cost,
        "speedup_measured": before["measured_median_ms"] / taken[0].ms,
        "speedup_macs": macs(arch) / macs(found.arch),
        "divergence": found.divergence,
        "surrogate": found.surrogate and asdict(found.surrogate),
        "before": {**_figures(arch, before, memory), **quality},
        "after": {**_figures(found.arch, after, memory), **_quality(job, left)},
        "blocks": _blocks(job, found),
        "targets": [
            _on_target(place, found, None if budgets is None else budgets[number], taken[number], first=not number)
            for number, place in enumerate(job.places)
        ],
    }


def _on_target(place: Job, found: Pruned, budget: float | None, taken: Taken, *, first: bool) -> dict[str, Any]:
    """The figures of one target; the first one's prediction is that of thresholds, too, which a table has no rows of."""
    times = None if taken.file is None else taken.file.times
    return {
        "target": place.table.target.name,
        "statistic": place.table.statistic,
        "budget_ms": budget,
        "predicted_ms": found.cost if first else place.table.predict(found.arch).ms,
        "measured_ms": taken.after["measured_ms"],
        "measured_median_ms": taken.ms,
        "speedup_measured": taken.before["measured_median_ms"] / taken.ms,
        "before": taken.before,
        "after": taken.after,
        "onnx": None if taken.file is None else str(taken.file.path),
        "onnx_measured_ms": times and times.ms,
        "onnx_measured_median_ms": taken.file_ms,
    }


def near_chance(acc: float, classes: int, images: int) -> bool:
    """Whether an accuracy on so many images is hardly above that of guessing, as where labels are in another order."""
    return images >= TELLING and acc < min(GUESSED / classes, MOST_GUESSED)


def _figures(arch: Arch, times: dict[str, float], memory: dict[Arch, float]) -> dict[str, Any]:
    return {"params": params(arch), "macs": macs(arch), **times, "peak_mb": memory[arch]}


def _quality(job: Job, network: Network) -> dict[str, float | None]:
    """On the test split: accuracy, without labels agreement with the dense network, or how far an encoder's features are from its."""
    distance = mean_distance(network, job.network, job.data, "test") if job.encoder else None
    return {**right(job, judged(job, network, "test")), "distance": distance}


def _blocks(job: Job, found: Pruned) -> list[dict[str, Any]]:
    """What became of each block, its parameters, MACs and milliseconds by the table, [before, after]; those where MACs fell and time did not are named."""
    arch, cost, rows = job.named.arch, Milliseconds(job.table), []
    left = iter((spec, state) for spec, state in found.arch.steps() if isinstance(spec, MB3D))
    for position, (spec, state) in enumerate(arch.steps()):
        if not isinstance(spec, MB3D):
            continue
        now = None if found.sizes.get(position, spec) is None else next(left)
        parameters, counted, times = (
            [of(spec, state), 0 if now is None else of(*now)]
            for of in (lambda one, on: one.params(on), lambda one, on: one.macs(on), cost.block)
        )
        work, ms = counted[1] / counted[0], times[1] / times[0]
        slow = work < 1 and 1 - ms < PAYS * (1 - work)
        if slow:
            say(f"block {position}: MACs fell to {work:.0%}, milliseconds to {ms:.0%}")
        left_of = "" if now is None else now[0].label
        figures = {"params": parameters, "macs": counted, "ms": times, "macs_share": work, "ms_share": ms}
        rows.append({"block": position, "left": left_of, **figures, "slow": slow})
    return rows
