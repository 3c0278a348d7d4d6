"""The two files of a table: what is damaged, or does not say what a table says, is refused in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks.latency_fuzz import EVERY, NAME, fuzz, mutate
from latency_tables import SHIPPED
from nas.latency import LatencyTable
from nas.table_file import Calibration, checksum, read, write
from search_spaces.errors import InputError
from tests.nas.test_latency import content


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    path = tmp_path / "hybrid_toy--cpu-ort-fp32-b1-t1--here"
    write(path, content())
    return path


def refusal(stem: Path) -> str:
    """The one line that refuses a table."""
    with pytest.raises(InputError) as caught:
        LatencyTable.load(stem)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 300
    return message


def without_column(text: str) -> str:
    return "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n"


def with_cell(value: str, column: int = 1) -> Callable[[str], str]:
    def edit(text: str) -> str:
        lines = text.splitlines()
        key, *cells = lines[3].rpartition('",')[0] + '"', *lines[3].rpartition('",')[2].split(",")
        cells = [key, *cells]
        cells[column] = value
        return "\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n"

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without_column, "missing: n"),
        (with_cell("nan"), "nan as ms"),
        (with_cell("inf"), "inf as ms"),
        (with_cell("-0.5"), "-0.5 as ms"),
        (with_cell("fast"), "'fast' as ms"),
        (with_cell("2.5", column=6), "2.5 as n"),
        (with_cell("stem", column=0), "'stem', which is the key of no row"),
        (with_cell('"stem@64[c=8,w]"', column=0), "which is the key of no row"),
        (with_cell('"stem\n@64[c=8]"', column=0), "which is the key of no row"),
        (lambda text: text + text.splitlines()[5] + "\n", "repeats the row"),
        (lambda text: text[:-30], "cut short"),
        (lambda text: "\n".join(text.splitlines()[:-3]) + "\n", "cut short"),
        (lambda text: text.replace("0.01", "0.02", 1), "edited"),
        (lambda text: text.replace("\n", "\r\n"), "edited"),
        (lambda text: "\ufeff" + text, "missing: key"),
        (lambda text: "", "columns"),
    ],
)
def test_a_damaged_csv_is_refused_in_one_line_that_says_where(
    stem: Path, edit: Callable[[str], str], says: str
) -> None:
    path = Path(f"{stem}.csv")
    path.write_bytes(edit(path.read_text()).encode())
    assert says in (message := refusal(stem)) and "measure again" in message


def rewritten(stem: Path, change: Callable[[Any], Any], *, sealed: bool) -> None:
    """Change the JSON file; `sealed`, its checksum with it."""
    path = Path(f"{stem}.json")
    value = change(json.loads(path.read_text()))
    path.write_text(json.dumps(value | {"checksum": checksum(value)} if sealed else value))


def having(**changes: Any) -> Callable[[Any], Any]:
    """Other fields: `calibration={"low": 2}` changes one of the calibration's."""

    def change(value: Any) -> Any:
        return value | {
            name: value[name] | item if isinstance(item, dict) and name in value else item
            for name, item in changes.items()
        }

    return change


def first_measurement(**changes: Any) -> Callable[[Any], Any]:
    return lambda value: value | {"measurements": [value["measurements"][0] | changes]}


def lacking(name: str) -> Callable[[Any], Any]:
    return lambda value: {key: item for key, item in value.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (having(schema=3), "schema 3, newer than 2; upgrade"),
        (having(schema=10**400), "newer than 2"),
        (having(schema=1), "schema 1, of which no checksum covers the figures; measure again"),
        (having(schema=True), "does not describe a latency table"),
        (having(kind="arch"), "does not describe a latency table"),
        (lacking("reference"), "lacks reference"),
        (having(memory_mb=3.0), "holds 'memory_mb', which this version does not know"),
        (having(calibration={"slope": 1.0}), "calibration holds 'slope'"),
        (lambda value: value | {"calibration": {"offset": 0.0}, "verdict": {}}, "verdict lacks noise_floor"),
        (having(calibration=[1.0]), "calibration is a list, not an object"),
        (having(calibration={"scale": [1.0]}), "calibration.scale is a list, not a number"),
        (having(calibration={"scale": True}), "calibration.scale is True, not a number"),
        (having(calibration={"scale": "1"}), "calibration.scale is '1', not a number"),
        (having(calibration={"scale": None}), "calibration.scale is null, not a number"),
        (having(calibration={"scale": 10**400}), "no finite number"),
        (having(calibration={"scale": 0}), "scale is 0"),
        (having(calibration={"low": 1.1}), "low is 1.1"),
        (having(calibration={"low": -0.1}), "low is -0.1"),
        (having(calibration={"high": 0.9}), "high 0.9"),
        (having(calibration={"nets": 3.5}), "calibration.nets is 3.5, not a whole number"),
        (having(reference_ms=0), "reference_ms is 0"),
        (having(reference_ms="fast"), "reference_ms is 'fast'"),
        (having(reference={"blocks": []}), "reference that is not an architecture"),
        (having(reference=7), "reference is 7, not an object"),
        (having(statistic="mean"), "statistic is 'mean', not one of median"),
        (having(target="cpu-tflite-int4-b1-t1"), "target is 'cpu-tflite-int4-b1-t1'"),
        (having(classes=[]), "classes and measurements"),
        (having(classes=["ten"]), "classes[0] is 'ten', not a whole number"),
        (having(measurements=[]), "classes and measurements"),
        (lambda value: value | {"measurements": {}}, "measurements is an object, not a list"),
        (first_measurement(at="today"), "measurements[0].at is 'today'"),
        (first_measurement(verdict={"good": True}), "measurements[0].verdict lacks noise_floor"),
        (having(verdict={"good": 1}), "verdict.good is 1, not true or false"),
        (having(verdict={"why": "a\nb" * 500}), "checksum differs"),
        (having(fingerprint={"cores": 2.0}), "fingerprint['cores'] is 2.0, not text or a whole number"),
        (having(fingerprint={"re\n" * 500: None}), "is null, not text or a whole number"),
        (having(protocol={"beat": "two"}), "protocol['beat'] is 'two', not a number"),
        (having(rows="many"), "rows is 'many', not a whole number"),
        (having(sha256=5), "sha256 is 5, not text"),
        (lambda value: value | {"remains_of": {"arch": "{}"}}, "remains_of lacks parts"),
    ],
)
def test_a_json_of_other_fields_types_or_figures_is_refused(
    stem: Path, change: Callable[[Any], Any], says: str
) -> None:
    rewritten(stem, change, sealed=says != "checksum differs")
    assert says in refusal(stem)


@pytest.mark.parametrize(
    "change",
    [
        having(calibration={"scale": 1.11}),
        having(calibration={"heldout_mape": 0.0}),
        having(verdict={"good": False}),
        having(fingerprint={"cpu": "Z80"}),
        having(reference_ms=0.5),
        first_measurement(seed=1),
        having(checksum="0" * 64),
    ],
)
def test_no_figure_changes_in_silence(stem: Path, change: Callable[[Any], Any]) -> None:
    rewritten(stem, change, sealed=False)
    assert "its checksum differs, it was edited" in refusal(stem)


def test_a_json_without_checksum_or_with_another_number_of_rows_is_refused(stem: Path) -> None:
    rewritten(stem, lacking("checksum"), sealed=False)
    assert "checksum is null" in refusal(stem)
    rewritten(stem, having(rows=3), sealed=True)
    assert "tells of 3 rows" in refusal(stem)


@pytest.mark.parametrize("text", ["[]", "3", '{"schema": 1,', "[" * 100_000, "1" * 5000, '{"a": "\ud800"}', ""])
def test_what_is_no_json_object_is_refused(stem: Path, text: str) -> None:
    Path(f"{stem}.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refusal(stem)


def test_a_json_that_is_laid_out_anew_is_the_same_table(stem: Path) -> None:
    before, path = read(stem), Path(f"{stem}.json")
    path.write_bytes(json.dumps(json.loads(path.read_text()), indent=5, sort_keys=True).replace("\n", "\r\n").encode())
    assert read(stem) == before


def test_fields_that_came_later_may_be_missing(stem: Path) -> None:
    """Those with a default: tables from before `factor` was known load."""

    def change(value: Any) -> Any:
        del value["calibration"]["factor"], value["verdict"]["interval"]
        return value

    rewritten(stem, change, sealed=True)
    assert read(stem).calibration.factor == Calibration.factor


def test_files_that_cannot_be_read_are_named(stem: Path) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with patch.object(Path, "read_bytes", refuse):
        assert "cannot be read (Permission denied)" in refusal(stem)
    with patch.object(Path, "read_text", refuse):
        assert f"{stem}.json cannot be read" in refusal(stem)


def test_a_table_that_is_not_there_or_half_there_is_refused(stem: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing") and "'.' is no table" in refusal(Path())
    csv, about = Path(f"{stem}.csv"), Path(f"{stem}.json")
    csv.rename(tmp_path / "aside")
    assert f"{csv} does not exist" in refusal(stem)
    csv.mkdir()
    assert f"{csv} cannot be read" in refusal(stem)
    about.unlink()
    assert f"{about} does not exist" in refusal(csv)
    about.mkdir()
    assert f"{about} cannot be read" in refusal(stem)


def test_a_kill_while_a_table_is_written_leaves_the_old_one_or_the_new_one(stem: Path, tmp_path: Path) -> None:
    old = read(stem)
    rows = {key: replace(row, ms=2 * row.ms) for key, row in old.rows.items()}
    other = tmp_path / "other"
    write(other, replace(old, rows=rows))
    to_csv, to_json = stem.with_name(stem.name + ".csv"), stem.with_name(stem.name + ".json")
    stem.with_name(stem.name + ".csv.next").write_bytes(other.with_suffix(".csv").read_bytes())
    assert read(stem).rows == old.rows
    to_json.write_bytes(other.with_suffix(".json").read_bytes())
    assert read(stem).rows == rows
    to_csv.unlink()
    assert read(stem).rows == rows
    write(stem, old)
    assert read(stem).rows == old.rows


def test_random_damage_is_refused_or_makes_no_difference(tmp_path: Path) -> None:
    found = fuzz(SHIPPED / NAME, range(200), 7, tmp_path)
    assert not found["failures"]
    assert found["refused"] + found["same"] == 200 and min(found["refused"], found["same"]) > 10


def test_every_kind_of_damage_is_done(stem: Path, tmp_path: Path) -> None:
    """Each changes the files, so that the fuzz shows what it says."""
    write(tmp_path / "other", content(rows={}, reference_ms=0.5))
    names, copies = set[str](), {suffix: Path(f"{stem}{suffix}").read_bytes() for suffix in (".csv", ".json")}
    for number in range(400):
        folder = tmp_path / str(number)
        folder.mkdir()
        for suffix, data in copies.items():
            (folder / f"table{suffix}").write_bytes(data)
        name = mutate(np.random.default_rng(number), folder / "table", tmp_path / "other").split()[0]
        left = {path.suffix: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}
        assert left != copies or name in ("forbid", "swap_lines"), name  # lines may be equal
        names.add(name)
    assert names == {change.__name__ for change in EVERY}
