"""Which latency tables there are: those that ship, and those that this machine has measured for itself."""

import time
from pathlib import Path
from typing import Any

from latency_tables import SHIPPED
from nas.files import TEMPORARY
from nas.runtimes import RUNTIMES
from nas.table_file import Content, read, stem_of
from nas.tables import tables_dir
from nas.target import Target, fingerprint, same_machine
from search_spaces.errors import InputError

__all__ = ["list_tables", "tables_in"]

DAY = 24 * 60 * 60  # seconds


def list_tables() -> dict[str, Any]:
    """Both folders and their tables, see `tables_in`: `shipped_in`, `shipped`, `measured_in`, `measured`."""
    here = tables_dir()
    return {
        "shipped_in": str(SHIPPED),
        "shipped": tables_in(SHIPPED),
        "measured_in": str(here),
        "measured": tables_in(here),
    }


def tables_in(folder: Path) -> list[dict[str, Any]]:
    """Each table of a folder by name, one field the same for all: a damaged one has its `fault`, a line, and null elsewhere.

    `name`, `space`, `target`, `machine`, `here` (whether that is this one), `age_days` since rows were last added, `rows`, `nets`
    (networks that it was calibrated on), `heldout_mape` (its error on them, held out), `adapted_from` (the tables whose rows were adapted, or null), `verdict` ("good", or why not), `fault`,
    `path` of the JSON file.
    """
    files = [path for path in folder.glob("*") if path.suffix in (".csv", ".json")]
    stems = sorted({stem_of(path) for path in files if not path.name.startswith(TEMPORARY)})
    return [_entry(stem) for stem in stems]


def _entry(stem: Path) -> dict[str, Any]:
    try:
        content, fault = read(stem), None
    except InputError as error:
        content, fault = None, str(error)
    facts = dict.fromkeys(FIELDS) if content is None else _facts(content)
    return {"name": stem.name, **facts, "fault": fault, "path": f"{stem}.json"}


FIELDS = ("space", "target", "machine", "here", "age_days", "rows", "nets", "heldout_mape", "adapted_from", "verdict")


def _facts(content: Content) -> dict[str, Any]:
    """A value for each of the `FIELDS`."""
    machine, calibration = content.fingerprint, content.calibration
    values = (
        content.space,
        content.target,
        f"{machine.get('gpu', machine.get('cpu'))}, {machine.get('cores')} cores",
        _here(content),
        (time.time() - max(measured.at for measured in content.measurements)) / DAY,
        len(content.rows),
        calibration.nets,
        calibration.heldout_mape,
        next((one.adapted_from.tables for one in content.measurements if one.adapted_from), None),
        "good" if content.verdict.good else content.verdict.why,
    )
    return dict(zip(FIELDS, values, strict=True))


def _here(content: Content) -> bool:
    """Whether this machine is the one that was measured."""
    target = Target.parse(content.target)
    able = RUNTIMES[target.runtime].lacks(target.device) is None
    return able and not same_machine(content.fingerprint, fingerprint(target))
