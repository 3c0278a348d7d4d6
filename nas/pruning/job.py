"""What is to be pruned, on which data, by which table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.prune import Prunable, prepare
from nas.data import Data
from nas.data import load as load_data
from nas.evaluate import calibration_batches
from nas.latency import LatencyTable
from nas.networks import Named, network_named
from nas.progress import say
from nas.tables import find_table, timed
from search_spaces.arch import Arch, Network
from search_spaces.blocks import BlockSpec
from search_spaces.errors import InputError
from search_spaces.spaces.remains import Remains
from search_spaces.states import State

__all__ = ["Job", "Milliseconds", "job_of"]


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
    parts: tuple[str, ...]
    seed: int

    def measured(self, archs: Sequence[Arch]) -> list[dict[str, float]]:
        """Milliseconds of networks in one interleaved run: the table's statistic, and the 90th percentile of the runs."""
        return [{"measured_ms": t.ms, "measured_p90_ms": t.p90} for t in timed(archs, self.table, self.seed)]

    def prunable(self) -> Prunable:
        """What the images tell of the network."""
        batches = calibration_batches(self.data, self.seed, self.images)
        cost = Milliseconds(self.table)
        found = prepare(self.network, cost, batches, parts=self.parts, progress=lambda what: say(f"pruning: {what}"))
        for frame in found.idle:
            say(f"{frame.label}: no faster than the dense network on {self.table.target.name}, left out")
        return found


def job_of(
    name: str,
    dataset: str,
    table: Path | None,
    target: str | None,
    weights: Path | None,
    images: int,
    parts: tuple[str, ...],
    seed: int,
    foreign: bool,
) -> Job:
    """The job that a user's names describe; the rows that the target's table lacks are measured first.

    Raises:
        InputError: no such network or data, no weights, another number of classes, or a table without the rows.
    """
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
        remains = Remains(named.arch, parts)
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
    return Job(named, named.network, data, prices, images, parts, seed)
