"""What is to be pruned, on which data, by which table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from compress.finite import check_finite
from compress.prune import MOMENTS, Prunable, Pruned, prepare
from nas.data import SPLITS, Data, Split
from nas.data import load as load_data
from nas.data.base import Labels
from nas.evaluate import best_classes, calibration_batches
from nas.latency import LatencyTable
from nas.networks import Named, network_named
from nas.progress import say
from nas.pruning.own_head import check_labelled, with_own_head
from nas.runs import digest
from nas.tables import find_tables, table_path, targets_of, timed
from nas.target import Target
from nas.train.retrain import Teacher
from search_spaces.arch import Arch, Network
from search_spaces.blocks import BlockSpec
from search_spaces.errors import InputError
from search_spaces.spaces.frames import whole_frame
from search_spaces.spaces.remains import Remains
from search_spaces.states import State

__all__ = ["DIVERGENCE", "Job", "Milliseconds", "job_of"]

DIVERGENCE = (
    0.5  # weight of the teacher's part of the loss, beside cross-entropy of weight 1 (AS-ViT, arXiv 2209.13802)
)

Given = TypeVar("Given", str, Path)


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
    source: str = ""  # names the weights that the user gave
    own_head: bool = False  # whether the classifier is still to be fitted to the data's classes
    beside: tuple[LatencyTable, ...] = ()  # of further targets, on which budgets hold too

    @property
    def places(self) -> "tuple[Job, ...]":
        """The job as it is on each target alone, the first as its own."""
        return tuple(replace(self, table=table, beside=()) for table in (self.table, *self.beside))

    @property
    def encoder(self) -> bool:
        """Whether the network has no classifier, and so no accuracy."""
        return self.named.arch.encoder

    def fitted(self, out: Path) -> "Job":
        """The same with a classifier that tells the data's classes apart, in the run folder `out` if it has to be fitted."""
        if not self.own_head:
            return self
        network = with_own_head(self.network, self.data, self.source, out)
        return replace(self, named=replace(self.named, network=network), network=network, own_head=False)

    def dense(self) -> Pruned:
        """The network as it is."""
        arch, ms = self.named.arch, self.table.predict(self.named.arch).ms
        return Pruned(arch, dict(self.network.state_dict()), ms, ms, 0.0, {}, whole_frame(arch))

    def wanted(self, split: Split) -> Labels:
        """The class (N,) that is right for each image of a split: its label, or the dense network's best class where there are none."""
        if self.data.labelled:
            return self.data.labels(split)
        if split not in self._told:
            self._told[split] = best_classes(self.network, self.data, split)
        return self._told[split]

    @cached_property
    def _told(self) -> dict[Split, Labels]:
        """The dense network's best classes of the splits that were asked for."""
        return {}

    def teacher(self, weight: float = DIVERGENCE / (1 + DIVERGENCE)) -> Teacher:
        """The dense network, to learn from at AS-ViT's temperature of 1; `weight` is its share of `supervised`'s loss, and beside 1 in `token_pruning`'s."""
        return Teacher(self.network, self.named.arch.classes, weight, temperature=1.0)

    def measured(self, archs: Sequence[Arch]) -> list[dict[str, float]]:
        """Milliseconds of networks in one interleaved run: the table's statistic, and median, mean and percentiles of the runs."""
        return [
            {
                "measured_ms": timing.ms,
                "measured_median_ms": timing.median,
                "measured_mean_ms": timing.mean,
                "measured_p90_ms": timing.p90,
                "measured_p95_ms": timing.p95,
            }
            for timing in timed(archs, self.table, self.seed)
        ]

    def prunable(self) -> Prunable:
        """What the images tell of the network."""
        batches = calibration_batches(self.data, self.seed, self.images)
        costs = [Milliseconds(place.table) for place in self.places]
        found = prepare(self.network, costs, batches, parts=self.parts, progress=lambda what: say(f"pruning: {what}"))
        names = " or ".join(place.table.target.name for place in self.places)
        for frame in found.idle:
            say(f"{frame.label}: no faster than the dense network on {names}, left out")
        return found


def job_of(
    name: str,
    dataset: str,
    table: Path | Sequence[Path] | None,
    target: str | Sequence[str] | None,
    weights: Path | None,
    images: int,
    parts: tuple[str, ...],
    seed: int,
    foreign: bool,
    labels_for: str | None = None,
    check: Callable[[Named, Data, Sequence[Target]], None] = lambda named, data, targets: None,
) -> Job:
    """The job that a user's names describe; the rows that the targets' tables lack are measured first.

    Targets are those of tables and then those that are named, the first the main one; one table and one target have to be of the same.
    `labels_for` is the flag, if there is one, that a network with a classifier needs labels for. `check` may refuse before
    anything is measured.

    Raises:
        InputError: no such network or data, no weights or such as are not finite, more images than calibration takes, labels that are
            needed and not there or out of range, classes without images where a classifier is to be fitted, a target twice, a table
            of another target, or one without the rows.
    """
    if images > MOMENTS:
        raise InputError(f"--images must be at most {MOMENTS}, since calibration takes no more, got {images}")
    tables, names = _several(table), _several(target)
    targets = _targets(tables, names)
    named = network_named(name, weights=weights)
    if named.network is None:
        raise InputError(
            f"{name} has no weights to prune; give a run, a checkpoint, timm:NAME, hf:NAME, or --weights FILE"
        )
    check_finite(named.network.state_dict())
    data = load_data(dataset, image_size=named.arch.image_size, labels=False)
    if not data.size("train"):
        raise InputError(f"{data.name} has no training images to calibrate on; add some")
    named = named.seeing(data)
    assert named.network is not None
    source, encoder = digest(named.network.state_dict()), named.arch.encoder
    own_head = not encoder and data.labelled and data.classes != named.arch.classes
    if not encoder:
        _check_labels(data, labels_for)
    if own_head:
        check_labelled(data)
        named = named.of_classes(data.classes, seed)
    assert named.network is not None
    try:
        remains = Remains(named.arch, parts)
    except ValueError as error:
        raise InputError(f"{name} cannot be pruned: {error}") from error
    check(named, data, targets)
    found = find_tables(tables, names if len(targets) > len(tables) else (), lambda: remains)
    for prices in found:
        _check_prices(prices, remains, name, foreign)
    return Job(named, named.network, data, found[0], images, parts, seed, source, own_head, tuple(found[1:]))


def _check_prices(prices: LatencyTable, remains: Remains, name: str, foreign: bool) -> None:
    """Refuse a table of another machine, unless that is meant, or without rows of what may be left; say so where it is not good."""
    prices.check_machine(foreign)
    if not prices.verdict["good"]:
        say(f"{prices.path.name} is not to be relied on: {prices.verdict['why']}")
    lacking = prices.unpriced(remains.rows)
    if lacking:
        raise InputError(
            f"{prices.path.name} lacks {len(lacking)} rows of what may be left of {name}, such as {lacking[0].key}; pass "
            f"--target {prices.target.name} in its place, which measures them"
        )


def _several(given: Given | Sequence[Given] | None) -> tuple[Given, ...]:
    """Each of what is given."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str | Path) else tuple(given)


def _targets(tables: Sequence[Path], names: Sequence[str]) -> list[Target]:
    """What the network is to be fast on: the targets of tables and then those that are named; one where both are of the same.

    Raises:
        InputError: no such target or table, none given, a target twice, or one table that is not of the one target.
    """
    if not tables and not names:
        raise InputError("give either --table FILE or --target NAME")
    if len(tables) == len(names) == 1:
        wanted, own = Target.parse(names[0]), LatencyTable.load(table_path(tables[0])).target
        if wanted != own:
            raise InputError(
                f"{tables[0]} is a table of {own.name}, not of {wanted.name}; give --target {wanted.name} alone, which measures what its "
                f"table lacks, or, to be fast on both, --target {own.name} --target {wanted.name}"
            )
        return [own]
    return targets_of(tables, names)


def _check_labels(data: Data, labels_for: str | None) -> None:
    """Refuse labels that are no classes, and images without any where the flag `labels_for` is given.

    Raises:
        InputError: there are such.
    """
    if not data.labelled:
        if labels_for is not None:
            raise InputError(
                f"{labels_for} needs labels, which {data.name} does not have; leave it out, or put the images in a folder for each class"
            )
        return
    for split in SPLITS:
        labels = data.labels(split)
        wrong = labels[(labels < 0) | (labels >= data.classes)]
        if len(wrong):
            raise InputError(
                f"{data.name} has {len(wrong)} labels in {split} that are none of its classes 0 to {data.classes - 1}, such as "
                f"{wrong[0]}; mend them"
            )
