"""Which networks to time for the rows of a space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.cost import macs
from nas.latency import LatencyTable
from nas.table_file import RowTime
from search_spaces.arch import Arch
from search_spaces.blocks import Row
from search_spaces.space import Space

__all__ = ["CALIBRATION_STREAM", "VALIDATION_STREAM", "Plan", "draw", "make_plan", "rows_to_time"]

CALIBRATION = 24  # whole networks that are timed besides the probes
CALIBRATION_STREAM, VALIDATION_STREAM, USE_STREAM = 1, 2, 3  # so that equal seeds draw different networks for each
USED = 100  # networks of the space whose predictions say which rows matter
DEAR = 2.5  # times the mean probe's MACs, above which no reference is if there is a cheaper one: a third of all visits are its
PROBES_A_ROW = 3  # where only some rows are missing, each is timed in so many probes
TRIES = 50  # draws for each network that is wanted, before a small space is said to have no more


@dataclass(frozen=True)
class Plan:
    """The networks to time, and what is known of their rows."""

    probes: tuple[Arch, ...]
    nets: tuple[Arch, ...]  # whole networks to calibrate on
    reference: Arch
    known: Mapping[str, RowTime]  # rows of an earlier measurement, by key
    used: tuple[Arch, ...]  # networks such as the table will price, which are not timed

    @property
    def archs(self) -> tuple[Arch, ...]:
        """Each network once."""
        return tuple(dict.fromkeys((*self.probes, *self.nets)))


def draw(space: Space, count: int, seed: int, stream: int) -> tuple[Arch, ...]:
    """Up to `count` different networks of the space, fewer only where it has no more; those to calibrate on are of every cost."""
    rng, draw_one = (
        np.random.default_rng([seed, stream]),
        space.spread if stream == CALIBRATION_STREAM else space.sample,
    )
    drawn: dict[Arch, None] = {}
    for _ in range(TRIES * count):
        if len(drawn) == count:
            break
        drawn[draw_one(rng)] = None
    return tuple(drawn)


def rows_to_time(space: Space, thresholds: bool = True) -> tuple[Row, ...]:
    """The rows of a space, those of thresholds only where the target runs networks with them."""
    return tuple(row for row in space.rows if thresholds or ("adaptive", 1) not in row.dims)


def make_plan(space: Space, table: LatencyTable | None, seed: int, thresholds: bool = True) -> Plan:
    """All probes for a new table, for the rows that `table` lacks a few probes each; with `thresholds`, for networks that have them too."""
    nets, used = draw(space, CALIBRATION, seed, CALIBRATION_STREAM), draw(space, USED, seed, USE_STREAM)
    runs = [arch for arch in space.probes() if thresholds or arch == arch.keeping(adaptive=False)]
    if table is None:
        probes = tuple(runs)
        return Plan(probes, nets, _reference(nets, probes), {}, used)
    chosen, every = dict[Arch, None](), [(probe, set(probe.rows)) for probe in runs]
    for row in table.unmeasured(rows_to_time(space, thresholds)):
        chosen |= dict.fromkeys([probe for probe, rows in every if row in rows][:PROBES_A_ROW])
    return Plan(tuple(chosen), nets, table.reference, table.content.rows, used)


def _reference(nets: Sequence[Arch], probes: Sequence[Arch]) -> Arch:
    """The middle one of the networks, or the dearest below it that is not far dearer than the probes."""
    limit = DEAR * sum(map(macs, probes)) / len(probes)
    cheapest, *others = sorted(nets, key=macs)[: len(nets) // 2 + 1]
    return [cheapest, *(arch for arch in others if macs(arch) <= limit)][-1]
