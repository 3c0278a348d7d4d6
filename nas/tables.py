"""Which latency table a command works with, and timing at its clock."""

from collections.abc import Callable, Sequence
from pathlib import Path

from latency_tables import SHIPPED
from nas.files import cache_dir
from nas.kept_rows import could_price
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.one_network import OneNetwork
from nas.progress import say
from nas.table_file import stem_of
from nas.target import Target
from nas.timing import ROUNDS, Timing, time_networks
from search_spaces import SPACES
from search_spaces.arch import Arch
from search_spaces.cascade import Cascade
from search_spaces.errors import InputError
from search_spaces.space import Measurable
from search_spaces.spaces.exits import Exits

__all__ = ["find_table", "find_tables", "measured_ms", "space_of", "table_path", "tables_dir", "targets_of", "timed"]

MOVED = 0.05  # share by which the clock may differ from the table's without a word


def tables_dir() -> Path:
    """The folder of the tables that this machine measures for itself."""
    return cache_dir() / "latency_tables"


def space_of(arch: Arch) -> Measurable:
    """A space whose rows price the network: those it measures, or behind a pruning location rows between them; of a cascade its exits.

    A network that is in no space is one by itself.

    Raises:
        InputError: it is in none and drops patches.
    """
    if isinstance(arch, Cascade):
        return Exits(arch)
    spaces = [build(classes=arch.classes) for build in SPACES.values()]
    return next((space for space in spaces if could_price(space, arch.rows)), None) or OneNetwork(arch)


def table_path(given: Path) -> Path:
    """Where a table lies that is given by its path, or by its name: this machine's, else one that ships; what is neither stays as it is."""
    name = stem_of(given)
    if given.parent != Path() or name.with_name(f"{name.name}.json").exists():
        return given
    found = (folder / name for folder in (tables_dir(), SHIPPED) if (folder / f"{name.name}.json").exists())
    return next(found, given)


def find_table(path: Path | None, target: str | None, space: Callable[[], Measurable]) -> LatencyTable:
    """The table of a path or name, see `table_path`, or this machine's table of `target` and the space that `space` gives, whose missing rows are measured first.

    Raises:
        InputError: neither or both given.
    """
    if (path is None) == (target is None):
        raise InputError("give either --table FILE or --target NAME")
    if path is not None:
        return LatencyTable.load(table_path(path))
    assert target is not None
    return measure_table(space(), Target.parse(target), tables_dir(), resume=True)


def find_tables(paths: Sequence[Path], targets: Sequence[str], space: Callable[[], Measurable]) -> list[LatencyTable]:
    """The table of each path or name and then of each target, see `find_table`; nothing is measured before all is known to be right.

    Raises:
        InputError: neither is given, or two are of the same target.
    """
    if not paths and not targets:
        return [find_table(None, None, space)]
    targets_of(paths, targets)
    loaded = [LatencyTable.load(table_path(path)) for path in paths]
    return [*loaded, *(find_table(None, name, space) for name in targets)]


def targets_of(paths: Sequence[Path], targets: Sequence[str]) -> list[Target]:
    """The target of each table of a path or name, and then each that is named.

    Raises:
        InputError: no such table or target, or two are the same target.
    """
    found = [*(LatencyTable.load(table_path(path)).target for path in paths), *map(Target.parse, targets)]
    twice = next((target.name for target in found if found.count(target) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice, by --table or --target; give each target once")
    return found


def timed(networks: Sequence[Arch | Path], table: LatencyTable, seed: int, rounds: int = ROUNDS) -> list[Timing]:
    """Each network, timed end to end now in `rounds` visits and put at the table's clock; says so where that clock has moved.

    Raises:
        InputError: a file is not a network for the table's target.
    """
    timings = time_networks(
        networks,
        table.target,
        reference=table.reference,
        reference_ms=table.reference_ms,
        statistic=table.statistic,
        rounds=rounds,
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
