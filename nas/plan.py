"""Which networks to time for the rows of a space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.cost import macs
from nas.latency import LatencyTable
from nas.table_file import RowTime
from search_spaces.arch import Arch
from search_spaces.blocks import Row
from search_spaces.space import Measurable

__all__ = ["CALIBRATION_STREAM", "VALIDATION_STREAM", "Plan", "draw", "make_plan", "rows_to_time"]

WHOLE = 24  # whole networks, drawn uniformly, that are timed beside the probes
SPREAD, UNIFORM = 6, 30  # networks to calibrate on: of every cost, which are dear, and drawn uniformly
MIDDLE = 24  # networks of every cost whose middle one is the reference
FEWEST = 3  # networks below which those that are probes themselves calibrate as well
CALIBRATION_STREAM, VALIDATION_STREAM, USE_STREAM, WHOLE_STREAM, UNIFORM_STREAM = range(1, 6)
"""So that equal seeds draw different networks for each."""

USED = 100  # networks of the space whose predictions say which rows matter
DEAR = 2.5  # times the mean probe's MACs, above which no reference is if there is a cheaper one: a third of all visits are its
PROBES_A_ROW = 3  # where only some rows are missing, each is timed in so many probes
TRIES = 50  # draws for each network that is wanted, before a small space is said to have no more


@dataclass(frozen=True)
class Plan:
    """The networks to time, and what is known of their rows."""

    probes: tuple[Arch, ...]
    nets: tuple[Arch, ...]  # whole networks beside them
    apart: tuple[Arch, ...]  # networks to calibrate on, timed in a session of their own
    reference: Arch
    known: Mapping[str, RowTime]  # rows of an earlier measurement, by key
    used: tuple[Arch, ...]  # networks such as the table will price, which are not timed

    @property
    def archs(self) -> tuple[Arch, ...]:
        """Each network that rows are solved from once."""
        return tuple(dict.fromkeys((*self.probes, *self.nets)))


def draw(space: Measurable, count: int, seed: int, stream: int) -> tuple[Arch, ...]:
    """Up to `count` different networks of the space, fewer only where it has no more; those to calibrate on are of every cost."""
    rng = np.random.default_rng([seed, stream])
    draw_one = space.spread if stream == CALIBRATION_STREAM else space.sample
    drawn: dict[Arch, None] = {}
    for _ in range(TRIES * count):
        if len(drawn) == count:
            break
        drawn[draw_one(rng)] = None
    return tuple(drawn)


def rows_to_time(space: Measurable, thresholds: bool = True) -> tuple[Row, ...]:
    """The rows of a space, those of thresholds only where the target runs networks with them."""
    return tuple(row for row in space.rows if thresholds or ("adaptive", 1) not in row.dims)


def make_plan(space: Measurable, table: LatencyTable | None, seed: int, thresholds: bool = True) -> Plan:
    """All probes for a new table, for the rows that `table` lacks a few probes each; with `thresholds`, for networks that have them too."""
    used = draw(space, USED, seed, USE_STREAM)
    runs = [arch for arch in space.probes() if thresholds or arch == arch.keeping(adaptive=False)]
    if table is None:
        spread = draw(space, MIDDLE, seed, CALIBRATION_STREAM)
        apart = _apart((*spread[:SPREAD], *draw(space, UNIFORM, seed, UNIFORM_STREAM)), runs)
        nets = tuple(arch for arch in draw(space, WHOLE, seed, WHOLE_STREAM) if arch not in apart)
        return Plan(tuple(runs), nets, apart, _reference(spread, runs), {}, used)
    chosen, every = dict[Arch, None](), [(probe, set(probe.rows)) for probe in runs]
    for row in table.unmeasured(rows_to_time(space, thresholds)):
        chosen |= dict.fromkeys([probe for probe, rows in every if row in rows][:PROBES_A_ROW])
    nets = draw(space, WHOLE, seed, WHOLE_STREAM)
    return Plan(tuple(chosen), nets, (), table.reference, table.content.rows, used)


def _apart(drawn: Sequence[Arch], probes: Sequence[Arch]) -> tuple[Arch, ...]:
    """Those to calibrate on: no probes, whose times the rows are solved from, unless the space has hardly any other networks."""
    others = tuple(arch for arch in dict.fromkeys(drawn) if arch not in probes)
    return others if len(others) >= FEWEST else tuple(dict.fromkeys(drawn))


def _reference(nets: Sequence[Arch], probes: Sequence[Arch]) -> Arch:
    """The middle one of the networks, or the dearest below it that is not far dearer than the probes."""
    limit = DEAR * sum(map(macs, probes)) / len(probes)
    cheapest, *others = sorted(nets, key=macs)[: len(nets) // 2 + 1]
    return [cheapest, *(arch for arch in others if macs(arch) <= limit)][-1]
