"""Which tables a new target's is adapted from."""

from collections.abc import Sequence
from pathlib import Path

from latency_tables import SHIPPED
from nas.latency import LatencyTable
from nas.measure import table_stem
from nas.table_file import stem_of
from nas.tables import table_path, tables_dir
from nas.target import Target
from search_spaces.errors import InputError
from search_spaces.space import Measurable

__all__ = ["KNOWN", "find_sources", "known_tables"]

KNOWN = "known"  # stands for all that there are


def find_sources(given: Sequence[Path], space: Measurable, target: Target) -> tuple[LatencyTable, ...]:
    """The tables of paths or names, see `nas.tables.table_path`, each once; of the word `known` those of `known_tables`.

    Raises:
        InputError: a table is missing or damaged, or none is known.
    """
    found: dict[str, LatencyTable] = {}
    for path in given:
        known = path == Path(KNOWN)
        for table in known_tables(space, target) if known else [LatencyTable.load(table_path(path))]:
            found.setdefault(table.content.sha256, table)
        if known and not found:
            raise InputError(f"no table of another target is known for {space.name}; give a file to --from, or measure")
    return tuple(found.values())


def known_tables(space: Measurable, target: Target) -> tuple[LatencyTable, ...]:
    """All good tables of the space that ship or that this machine has measured, but for this machine's of `target` itself.

    One that this machine has measured stands for the shipped one of its name. What was adapted tells nothing that its
    sources do not.

    Raises:
        InputError: a table is damaged.
    """
    folders = (SHIPPED, tables_dir())
    stems = {
        stem.name: stem for folder in folders for stem in map(stem_of, sorted(folder.glob(f"{space.name}--*.json")))
    }
    own = table_stem(space, target, tables_dir()).name
    tables = [LatencyTable.load(stem) for name, stem in sorted(stems.items()) if name != own]
    return tuple(
        table
        for table in tables
        if table.content.space == space.name and table.content.verdict.good and table.adapted_from is None
    )
