"""`nas tables`, and tables given by name."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables import SHIPPED
from nas.cli.main import main
from nas.files import TEMPORARY
from nas.latency import LatencyTable
from nas.table_file import read, write
from nas.table_list import tables_in
from nas.tables import find_table, table_path, tables_dir
from nas.target import Target, fingerprint
from search_spaces import SPACES, InputError
from tests.nas.test_latency import VERDICT, content

TARGET = Target.parse("cpu-ort-fp32-b1-t1")
FIELDS = {"name", "space", "target", "machine", "here", "age_days", "rows", "nets", "heldout_mape", "adapted_from"}
FIELDS |= {"verdict", "fault", "path"}
(NAME,) = (path.stem for path in SHIPPED.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.json"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    return tables_dir()


def nas(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["nas", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    nas(monkeypatch, "tables", "--json")
    return json.loads(capsys.readouterr().out)


def test_the_tables_that_ship_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(monkeypatch, capsys)
    assert found["measured"] == [] and found["measured_in"] == str(tables_dir())
    assert {one["name"] for one in found["shipped"]} == {path.stem for path in SHIPPED.glob("*.json")}
    one = next(one for one in found["shipped"] if one["name"] == NAME)
    table = LatencyTable.load(one["path"])
    assert one.keys() == FIELDS and one["name"] == NAME and one["fault"] is None
    assert (one["space"], one["target"], one["rows"]) == ("hybrid_digits", TARGET.name, len(table.rows))
    assert one["nets"] == table.content.calibration.nets and one["verdict"] == "good"
    assert one["heldout_mape"] == table.content.calibration.heldout_mape
    nas(monkeypatch, "tables")
    text = capsys.readouterr().out
    assert f"shipped_in: {SHIPPED}" in text and "hybrid_digits" in text and "measured: []" in text


def test_those_of_this_machine_are_listed_with_their_age_and_verdict(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    when = [replace(content().measurements[0], at=round(time.time()) - days * 86400) for days in (9, 3)]
    write(cache / "a--here", content(measurements=tuple(when)))
    other = fingerprint(TARGET) | {"cpu": "Z80", "cores": 1}
    write(cache / "b--there", content(fingerprint=other, verdict=replace(VERDICT, good=False, why="too noisy")))
    first, second = listed(monkeypatch, capsys)["measured"]
    assert first["here"] and first["age_days"] == pytest.approx(3, abs=0.1) and first["verdict"] == "good"
    assert not second["here"] and second["machine"] == "Z80, 1 cores" and second["verdict"] == "too noisy"


def test_a_damaged_table_has_its_fault_and_the_others_are_listed(cache: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(cache / name, content())
    (cache / "a.json").write_text("{")
    (cache / "b.csv").unlink()
    (cache / "c.json").unlink()
    (cache / f"{TEMPORARY}d.json").write_text("half")
    (cache / "d.samples.jsonl").write_text("{}\n")
    *damaged, whole = tables_in(cache)
    assert [one["name"] for one in damaged] == ["a", "b", "c"] and whole["name"] == "d" and whole["fault"] is None
    for one, says in zip(damaged, ("not valid JSON", "b.csv does not exist", "c.json does not exist"), strict=True):
        assert says in one["fault"] and "\n" not in one["fault"]
        assert one.keys() == FIELDS and {one[name] for name in FIELDS - {"name", "fault", "path"}} == {None}


def test_a_table_that_this_machine_cannot_run_is_another_machines(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cache / "a", content())
    assert tables_in(cache)[0]["here"]
    monkeypatch.setattr("nas.runtimes.Runtime.lacks", lambda runtime, device: "it is not installed")
    assert not tables_in(cache)[0]["here"]


def test_a_table_is_found_by_its_path_or_by_its_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = SHIPPED / NAME
    for given in (NAME, f"{NAME}.csv", f"{NAME}.json"):
        assert table_path(Path(given)) == shipped
        assert find_table(Path(given), None, SPACES["vit"]).path == shipped
    write(cache / NAME, content())
    assert table_path(Path(NAME)) == cache / NAME, "this machine's own come first"
    monkeypatch.chdir(tmp_path)
    for suffix in (".csv", ".json"):
        shutil.copy(f"{shipped}{suffix}", tmp_path)
    assert table_path(Path(NAME)) == Path(NAME), "and a file before them"
    assert table_path(Path("folder") / NAME) == Path("folder") / NAME
    with pytest.raises(InputError, match=r"nowhere\.json does not exist.*`nas tables`"):
        find_table(Path("nowhere"), None, SPACES["vit"])


def test_commands_take_a_shipped_tables_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    space, about = SPACES["hybrid_digits"](), read(SHIPPED / NAME)
    (tmp_path / "arch.json").write_text(space.sample(np.random.default_rng(0)).to_json())
    nas(monkeypatch, "describe", str(tmp_path / "arch.json"), "--table", NAME, "--json")
    assert json.loads(capsys.readouterr().out)["predicted_ms"] > 0
    monkeypatch.setattr("nas.latency.fingerprint", lambda target: {**about.fingerprint, "cpu": "abacus"})
    for words in (["validate", NAME], ["export", str(tmp_path / "arch.json"), "--format", "onnx", "--table", NAME]):
        monkeypatch.setattr("sys.argv", ["nas", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and "measured on another machine" in capsys.readouterr().err
