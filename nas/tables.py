"""Which latency table a command works with, and timing at its clock."""

from collections.abc import Sequence
from pathlib import Path

from nas.files import cache_dir
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.progress import say
from nas.target import Target
from nas.timing import Timing, time_networks
from search_spaces import Space
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["find_table", "measured_ms", "timed"]

MOVED = 0.05  # share by which the clock may differ from the table's without a word


def find_table(path: Path | None, target: str | None, space: Space) -> LatencyTable:
    """The table at `path`, or this machine's table of `target` and `space`, whose missing rows are measured first.

    Raises:
        InputError: neither or both given.
    """
    if (path is None) == (target is None):
        raise InputError("give either --table FILE or --target NAME")
    if path is not None:
        return LatencyTable.load(path)
    assert target is not None
    return measure_table(space, Target.parse(target), cache_dir() / "latency_tables", resume=True)


def timed(networks: Sequence[Arch | Path], table: LatencyTable, seed: int) -> list[Timing]:
    """Each network, timed end to end now and put at the table's clock; says so where that clock has moved.

    Raises:
        InputError: a file is not a network for the table's target.
    """
    timings = time_networks(
        networks,
        table.target,
        reference=table.reference,
        reference_ms=table.reference_ms,
        statistic=table.statistic,
        seed=seed,
    )
    drift = timings[0].drift
    if abs(drift - 1) > MOVED:
        say(
            f"the machine runs at {1 / drift:.0%} of its speed when {table.path.name} was measured; times are put at that"
        )
    return timings


def measured_ms(networks: Sequence[Arch | Path], table: LatencyTable, seed: int) -> list[float]:
    """The milliseconds alone of `timed`."""
    return [timing.ms for timing in timed(networks, table, seed)]
