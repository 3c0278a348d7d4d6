"""Latency tables on disk: the rows as `<stem>.csv`, everything about them as `<stem>.json` with the CSV's checksum."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nas.files import atomic_write, read_json
from search_spaces.errors import InputError

__all__ = ["SCHEMA", "Calibration", "Content", "RowTime", "Verdict", "read", "stem_of", "write"]

SCHEMA = 1
DIGITS = 6  # decimals in both files


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
    measurements: tuple[Mapping[str, Any], ...]  # for each that added rows: when, seed, rounds, networks, verdict
    rows: Mapping[str, RowTime]  # by key
    sha256: str = ""  # of the CSV; filled in by `read`


MEND = "restore it or measure again"
COLUMNS = ("key", *(field.name for field in fields(RowTime)))


def stem_of(path: Path) -> Path:
    """The two files' common path, from either file's or from itself."""
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


def write(stem: Path, content: Content) -> None:
    """Write both files; a kill in between leaves the old table or the new one.

    Raises:
        InputError: they cannot be written.
    """
    rows = _csv(content.rows)
    facts = _rounded(asdict(content)) | {"rows": len(content.rows), "sha256": hashlib.sha256(rows).hexdigest()}
    value = {"schema": SCHEMA, "kind": "latency-table", **facts}
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    to_csv, to_json = _files(stem)
    atomic_write(_next(to_csv), rows)
    atomic_write(to_json, text)  # from here on the new table is the one that is read, were it only from `_next`
    _next(to_csv).replace(to_csv)


def _row(where: str, cells: list[str]) -> tuple[str, RowTime]:
    if len(cells) != len(COLUMNS):
        raise InputError(f"{where} has {len(cells)} of {len(COLUMNS)} columns: it was cut short or edited; {MEND}")
    values: dict[str, float] = {}
    for name, cell in zip(COLUMNS[1:], cells[1:], strict=True):
        try:
            value = float(cell)
        except ValueError as error:
            raise InputError(f"{where} holds {cell!r} as {name} of {cells[0]}, not a number; {MEND}") from error
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{where} holds {cell} as {name} of {cells[0]}, which cannot be; {MEND}")
        values[name] = value
    count = int(values.pop("n"))
    return cells[0], RowTime(**values, n=count)


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


def _about(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != "latency-table" or not isinstance(value.get("schema"), int):
        raise InputError(f"{path} does not describe a latency table; give the .csv or .json that `nas measure` wrote")
    if value["schema"] > SCHEMA:
        raise InputError(f"{path} has schema {value['schema']}, newer than {SCHEMA}; upgrade, or measure again")
    lost = [field.name for field in fields(Content) if field.name not in value]
    if lost:
        raise InputError(f"{path} lacks {', '.join(lost)}; {MEND}")
    return value


def _content(path: Path, value: dict[str, Any], rows: dict[str, RowTime]) -> Content:
    """The parts of the JSON file, checked where predictions rest on them."""
    given = {field.name: value[field.name] for field in fields(Content)} | {"rows": rows}
    try:
        given |= {"calibration": Calibration(**value["calibration"]), "verdict": Verdict(**value["verdict"])}
        given |= {name: tuple(value[name]) for name in ("classes", "measurements")}
        given_figures = [figure for name, figure in value["calibration"].items() if name != "kind"]
        figures = [value["reference_ms"], *given_figures]
        sound = value["reference_ms"] > 0 and all(math.isfinite(figure) for figure in figures)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} has other fields than this version reads ({error}); measure again") from error
    if not sound:
        raise InputError(f"{path} holds a calibration or reference that is not a number; {MEND}")
    return Content(**given)


def read(path: Path) -> Content:
    """Both files of a table, from the path of either or their common stem.

    Raises:
        InputError: a file is missing, damaged, of a newer schema, or they do not belong together.
    """
    table, about = _files(stem_of(path))
    if not about.is_file():
        raise InputError(f"{about} does not exist; a latency table is a .csv and a .json that `nas measure` wrote")
    value = _about(about)
    if _next(table).is_file() and hashlib.sha256(_next(table).read_bytes()).hexdigest() == value["sha256"]:
        table = _next(table)
    if not table.is_file():
        raise InputError(f"{table} does not exist; a latency table is a .csv and a .json that `nas measure` wrote")
    content = table.read_bytes()
    rows = _rows(table, content)
    if hashlib.sha256(content).hexdigest() != value["sha256"]:
        raise InputError(f"{table} is not the file that {about.name} describes: it was cut short or edited; {MEND}")
    return _content(about, value, rows)
