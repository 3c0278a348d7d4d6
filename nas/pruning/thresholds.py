"""Numbers of patches that differ from image to image, in what is left of a network that drops tokens: learned, or solved for alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress import calibrate, counts_of, hold, thresholds_of
from compress.prune import Pruned
from compress.token_losses import Curve
from nas.evaluate import calibration_batches
from nas.latency import LatencyTable
from nas.progress import say
from nas.pruning.job import DIVERGENCE, Job
from nas.pruning.saved import remembered
from nas.train.loop import Recipe
from nas.train.thresholds import Budget, budget_of, learn_thresholds
from search_spaces.arch import Arch

__all__ = ["learned", "solved"]


@dataclass(frozen=True)
class Shifted:
    """A table's prices of networks that keep fixed numbers, and what thresholds cost beside; see `Priced`."""

    table: LatencyTable
    extra: float  # ms

    def curve(self, arch: Arch) -> Curve:
        """Milliseconds of `arch` over the patches kept at each location."""
        fixed = self.table.curve(arch.keeping(adaptive=False))

        def curve(counts: Sequence[Tensor]) -> Tensor:
            return fixed(counts) + self.extra

        return curve


def learned(job: Job, found: Pruned, recipe: Recipe, out: Path, budget: float) -> dict[str, Any] | None:
    """Train with thresholds that are held at `budget` ms on average (AS-ViT's losses), the dense network as teacher.

    None, and a line that says why, where every patch may stay, or even one patch of each image takes longer.

    Raises:
        InputError: `out` holds another run.
    """
    held = _budget(job, found.arch, out, budget)
    if held is None:
        return None
    return learn_thresholds(
        found.arch,
        job.data,
        recipe,
        out,
        held,
        start=dict(found.weights),
        teacher=job.teacher(DIVERGENCE),
        resume=True,
    )


def solved(job: Job, found: Pruned, out: Path, budget: float) -> tuple[Pruned, dict[str, Any]] | None:
    """Thresholds that are held at `budget` ms on average over training images, with weights as they are; None as `learned`.

    Returns:
        What is left, its specs with the mean numbers of patches that it keeps; and `held_cost` in ms, `kept` and `thresholds`.
    """
    held = _budget(job, found.arch, out, budget)
    if held is None:
        return None
    arch = found.arch.keeping(adaptive=True)
    network = arch.build().eval()
    network.load_state_dict({**network.state_dict(), **found.weights})
    batches = calibration_batches(job.data.at(arch.image_size), job.seed, job.images)
    calibrate(network, arch, batches)
    cost = hold(network, arch, batches, held.curve, held.target)
    kept = counts_of(network, batches).double().mean(0).tolist()
    told = {
        "held_cost": cost,
        "kept": kept,
        "thresholds": [float(one.detach()) for one in thresholds_of(network, arch)],
    }
    named = arch.keeping([max(1, round(mean)) for mean in kept])
    return replace(found, arch=named, weights=dict(network.state_dict()), cost=cost), told


def _budget(job: Job, left: Arch, out: Path, budget: float) -> Budget | None:
    """The budget of what is left with thresholds, whose own cost is measured and kept beside `out`; None where it is above all patches' cost, or below that of one.

    A table of what may be left has no rows of thresholds: what they cost is told by timing the network that has them.
    """
    arch = left.keeping(adaptive=True)

    def extra() -> float:
        (times,) = job.measured([arch])
        return times["measured_ms"] - job.table.predict(left.keeping(adaptive=False)).ms

    prices = Shifted(job.table, remembered(out.with_name(f"{out.name}-extra.json"), extra))
    limits = budget_of(arch, prices)
    if budget < limits.least:
        say(
            f"thresholds do not pay on {job.table.target.name}: with them what is left takes {limits.least:.4g} ms with one patch of each "
            f"image, above {budget:.4g} ms; fixed numbers of patches stay"
        )
        return None
    if budget > limits.dense:
        say(f"every patch may stay within {budget:.4g} ms: there is nothing for thresholds to do")
        return None
    return budget_of(arch, prices, budget)
