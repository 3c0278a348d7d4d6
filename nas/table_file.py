"""Latency tables on disk: the rows as `<stem>.csv`, everything about them as `<stem>.json`, both under a checksum.

The JSON holds the CSV's SHA-256 and its own: that of its content with sorted keys and without white space, so that it can be laid
out anew but no figure changed. What is not understood is refused, fields that this version does not know among it: whoever adds
rows writes both files anew, and would lose them.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from glob import escape
from pathlib import Path
from typing import Any

from nas.correction import STATISTICS
from nas.files import TEMPORARY, atomic_write, read_json
from nas.target import Target
from nas.typed_json import short, typed
from search_spaces.errors import InputError

__all__ = [
    "SCHEMA",
    "Adaptation",
    "Calibration",
    "Content",
    "Measurement",
    "Origin",
    "RemainsOf",
    "RowTime",
    "Verdict",
    "checksum",
    "read",
    "rewrite",
    "stem_of",
    "sweep",
    "write",
]

SCHEMA = 2  # 1 had no checksum of the JSON file
DIGITS = 6  # decimals in both files
LONGEST_KEY = 120  # characters
KEY = re.compile(r"[a-z]\w*(\.\w+)*@\d{1,9}\[([a-z]\w*=\d{1,9}(,[a-z]\w*=\d{1,9})*)?\]", re.ASCII)  # see `Row.key`


@dataclass(frozen=True)
class RowTime:
    """Milliseconds of a row: what predictions use, and its spread when as many visits are drawn anew."""

    ms: float
    median: float
    p10: float
    p90: float
    mad: float  # median absolute deviation
    n: int  # visits of the networks that have it


@dataclass(frozen=True)
class Calibration:
    """A prediction is `offset + scale * sum of rows`; the band is a share of it."""

    offset: float = 0.0  # ms
    scale: float = 1.0
    low: float = 1.0  # the band's ends over the prediction
    high: float = 1.0
    heldout_mape: float = 0.0  # over `nets` networks, each predicted without its own measurement
    heldout_within_5pct: float = 1.0
    nets: int = 0
    kind: str = ""  # of the rows whose times were multiplied by `factor`, as whole networks take so much more for them
    factor: float = 1.0
    moved: float = (
        0.0  # share by which times differed between two processes; in older tables between halves of all visits
    )

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, but a band goes from below 1 to above")
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale:g}, but no network is quicker for having more blocks")


@dataclass(frozen=True)
class Verdict:
    """Whether a measurement can be trusted."""

    noise_floor: float  # see `nas.correction.Times`
    drift: float  # slowest clock over fastest, less 1
    disturbed: float  # share of the visits beside a slow reference
    rounds_redone: int
    good: bool
    why: str
    interval: float = (
        0.0  # half the 95% interval of a network's time, as a share of it: what 90% of the networks are within
    )


@dataclass(frozen=True)
class Origin:
    """A table that rows were adapted from."""

    table: str  # its name
    sha256: str  # of its rows
    target: str


@dataclass(frozen=True)
class Adaptation:
    """How rows were adapted from other tables'; see `nas.adaptation`."""

    table: str  # the first one's name
    sha256: str  # of its rows
    target: str
    nets: tuple[str, ...]  # the networks that were timed
    factors: Mapping[str, float]  # new over the first one's ms of all rows of a kind together
    heldout_mape: float
    one_scale: float  # were the first one's rows scaled alike, for comparison
    one_scale_heldout_mape: float
    others: tuple[Origin, ...] = ()  # the tables beside the first

    @property
    def tables(self) -> str:
        """Which tables, in a few words."""
        return f"{self.table} and {len(self.others)} more" if self.others else self.table


@dataclass(frozen=True)
class Measurement:
    """One that added rows."""

    at: int  # when it began, or was last gone on with, seconds since 1970
    seconds: float  # from then on
    rounds: int
    seed: int
    classes: int
    networks: int
    verdict: Verdict
    adapted_from: Adaptation | None = None  # None where all rows were measured


@dataclass(frozen=True)
class RemainsOf:
    """The network that a table is of: the dense one of what may be left, or the cascade of exits."""

    arch: str  # its JSON, as text: the figures of an object are rounded
    parts: tuple[str, ...]  # that may be made smaller, of the measurement that added rows last


@dataclass(frozen=True)
class Content:
    """Everything that the two files hold."""

    space: str
    classes: tuple[int, ...]  # class counts that were measured
    target: str
    fingerprint: Mapping[str, str | int]
    protocol: Mapping[str, float]
    statistic: str  # a key of `nas.correction.STATISTICS`
    calibration: Calibration
    reference: Mapping[str, Any]  # the reference network as JSON object
    reference_ms: float
    verdict: Verdict  # of the worst of the measurements
    measurements: tuple[Measurement, ...]
    rows: Mapping[str, RowTime]  # by key
    sha256: str = ""  # of the CSV; filled in by `read`
    remains_of: RemainsOf | None = None  # None for the spaces that have names

    def __post_init__(self) -> None:
        """Refuse what no measurement gives.

        Raises:
            ValueError: a figure, the target or the statistic.
        """
        if self.reference_ms <= 0:
            raise ValueError(f"reference_ms is {self.reference_ms:g}, but every network takes some time")
        if not self.classes or min(self.classes) < 1 or not self.measurements:
            raise ValueError("classes and measurements need an entry each, and no network has fewer than one class")
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic is {short(self.statistic)}, not one of {', '.join(STATISTICS)}")
        try:
            Target.parse(self.target)
        except InputError as error:
            raise ValueError(f"target is {short(self.target)}, which this version does not measure") from error


MEND = "restore it or measure again"
COLUMNS = ("key", *(field.name for field in fields(RowTime)))


def stem_of(path: Path) -> Path:
    """The two files' common path, from either file's or from itself.

    Raises:
        InputError: the path names no file.
    """
    if not path.name:
        raise InputError(f"{str(path)!r} is no table; give the .csv or .json that `nas measure` wrote")
    return path.with_suffix("") if path.suffix in (".csv", ".json") else path


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".csv"), stem.with_name(stem.name + ".json")


def _next(path: Path) -> Path:
    """Where new rows wait until the JSON file that describes them is written."""
    return path.with_name(path.name + ".next")


def _csv(rows: Mapping[str, RowTime]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, row in sorted(rows.items()):
        figures = asdict(row).values()
        writer.writerow([key, *(f"{figure:.{DIGITS}f}" if isinstance(figure, float) else figure for figure in figures)])
    return text.getvalue().encode()


def _rounded(value: Any) -> Any:
    """The same JSON value with every float at `DIGITS` decimals."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def checksum(about: Mapping[str, Any]) -> str:
    """SHA-256 of a table's JSON object: of all its fields but this one, whatever their order.

    Raises:
        ValueError: a number in it is not finite.
    """
    covered = {name: item for name, item in about.items() if name != "checksum"}
    return _sha256(json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(stem: Path, content: Content) -> None:
    """Write both files; a kill in between leaves the old table or the new one.

    Raises:
        InputError: they cannot be written.
    """
    rows = _csv(content.rows)
    facts = _rounded(asdict(content)) | {"rows": len(content.rows), "sha256": _sha256(rows)}
    value = {"schema": SCHEMA, "kind": "latency-table", **facts}
    text = json.dumps(value | {"checksum": checksum(value)}, indent=2, allow_nan=False) + "\n"
    to_csv, to_json = _files(stem)
    atomic_write(_next(to_csv), rows)
    atomic_write(to_json, text)  # from here on the new table is the one that is read, were it only from `_next`
    _next(to_csv).replace(to_csv)


def sweep(stem: Path) -> None:
    """Remove what killed processes left that were writing these files; no other may be at it."""
    for name in (f"{stem.name}-", f"{stem.name}.csv-"):
        for left in stem.parent.glob(f"{TEMPORARY}{escape(name)}*"):
            left.unlink(missing_ok=True)


def rewrite(stem: Path) -> None:
    """Write a table as it is, once more: a kill may have left its rows in `_next`; no other process may be at it."""
    sweep(stem)
    write(stem, read(stem))


def _row(where: str, cells: list[str]) -> tuple[str, RowTime]:
    if len(cells) != len(COLUMNS):
        raise InputError(f"{where} has {len(cells)} of {len(COLUMNS)} columns: it was cut short or edited; {MEND}")
    key = cells[0]
    if not KEY.fullmatch(key) or len(key) > LONGEST_KEY:
        raise InputError(f"{where} holds {short(key)}, which is the key of no row; {MEND}")
    values: dict[str, float] = {}
    for name, cell in zip(COLUMNS[1:], cells[1:], strict=True):
        try:
            value = float(cell)
        except ValueError as error:
            raise InputError(f"{where} holds {short(cell)} as {name} of {key}, not a number; {MEND}") from error
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{where} holds {value:g} as {name} of {key}, which cannot be; {MEND}")
        values[name] = value
    count = values.pop("n")
    if not count.is_integer():
        raise InputError(f"{where} holds {count:g} as n of {key}, not a whole number; {MEND}")
    return key, RowTime(**values, n=int(count))


def _rows(path: Path, content: bytes) -> dict[str, RowTime]:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file ({error}); {MEND}") from error
    header = lines[0] if lines else []
    if tuple(header) != COLUMNS:
        lost = ", ".join(name for name in COLUMNS if name not in header) or "none"
        raise InputError(f"{path} does not have the columns {','.join(COLUMNS)} (missing: {lost}); {MEND}")
    rows: dict[str, RowTime] = {}
    for number, cells in enumerate(lines[1:], start=2):
        key, row = _row(f"{path} line {number}", cells)
        if key in rows:
            raise InputError(f"{path} line {number} repeats the row {key}; {MEND}")
        rows[key] = row
    return rows


def _about(path: Path) -> tuple[Content, int]:
    """What the JSON file says, without the rows, and how many there are.

    Where a field is wrong by itself, the message names it; the checksum tells of all else.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != "latency-table" or type(value.get("schema")) is not int:
        raise InputError(f"{path} does not describe a latency table; give the .csv or .json that `nas measure` wrote")
    if value["schema"] > SCHEMA:
        raise InputError(f"{path} has schema {short(value['schema'])}, newer than {SCHEMA}; upgrade, or measure again")
    if value["schema"] < SCHEMA:
        mend = "measure again with `nas measure --fresh`"
        raise InputError(f"{path} has schema {short(value['schema'])}, of which no checksum covers the figures; {mend}")
    facts = {name: item for name, item in value.items() if name not in ("schema", "kind", "checksum")}
    try:
        count: int = typed(int, facts.get("rows"), "rows")
        content: Content = typed(Content, facts | {"rows": {}})
        sound = checksum(value) == typed(str, value.get("checksum"), "checksum")
    except InputError as error:
        raise InputError(f"{path}: {error}; {MEND}") from error
    except ValueError as error:
        raise InputError(f"{path} holds a number that is not finite; {MEND}") from error
    if not sound:
        raise InputError(f"{path} is not what `nas measure` wrote: its checksum differs, it was edited; {MEND}")
    return content, count


def _bytes(path: Path) -> bytes | None:
    """What a file holds; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {MEND}") from error


def read(path: Path) -> Content:
    """Both files of a table, from the path of either or their common stem.

    Raises:
        InputError: a file is missing, damaged, of another schema, or they do not belong together.
    """
    table, about = _files(stem_of(path))
    whole = "a table is a .csv and a .json that `nas measure` wrote; `nas tables` lists those there are"
    if not about.exists():
        raise InputError(f"{about} does not exist; {whole}")
    facts, count = _about(about)
    found = None
    for file in (_next(table), table):
        found = _bytes(file)
        if found is not None and _sha256(found) == facts.sha256:
            content = replace(facts, rows=_rows(file, found))
            if len(content.rows) != count:
                raise InputError(f"{about} tells of {count} rows, {file.name} has {len(content.rows)}; {MEND}")
            return content
    if found is None:
        raise InputError(f"{table} does not exist; {whole}")
    _rows(table, found)  # which names the line, where one is wrong by itself
    raise InputError(f"{table} is not the file that {about.name} describes: it was cut short or edited; {MEND}")
