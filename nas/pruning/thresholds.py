"""Numbers of patches that differ from image to image, in what is left of a network that drops tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.prune import Pruned
from compress.token_losses import Curve
from nas.latency import LatencyTable
from nas.pruning.job import Job
from nas.pruning.saved import remembered
from nas.train.loop import Recipe
from nas.train.thresholds import budget_of, learn_thresholds
from search_spaces.arch import Arch

__all__ = ["learned"]


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

    A table of what may be left has no rows of thresholds: what they cost is told by timing the network that has them. None
    where the budget is held with every patch kept, so that thresholds have nothing to do.

    Raises:
        InputError: the target runs no thresholds, or `out` holds another run.
    """
    arch = found.arch.keeping(adaptive=True)
    job.table.target.check_runs(arch)

    def extra() -> float:
        (times,) = job.measured([arch])
        return times["measured_ms"] - job.table.predict(found.arch).ms

    prices = Shifted(job.table, remembered(out.with_name(f"{out.name}-extra.json"), extra))
    if budget > budget_of(arch, prices).dense:
        return None
    return learn_thresholds(
        arch,
        job.data,
        recipe,
        out,
        budget_of(arch, prices, budget),
        start=dict(found.weights),
        teacher=job.teacher(temperature=1.0),
        resume=True,
    )
