"""Real measurements of a space that is small enough for a test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from nas.files import TEMPORARY
from nas.latency import LatencyTable
from nas.measure import measure_table, table_stem
from nas.runtimes import RUNTIMES, Runtime, onnxruntime
from nas.runtimes.onnxruntime import Session, export_onnx
from nas.target import Target
from nas.timing import time_networks, time_sessions
from nas.validate import validate
from nas.visits import REFERENCE, Visit
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError
from search_spaces.spaces.hybrid import Hybrid, Stage

TARGET = Target.parse("cpu-ort-fp32-b1-t1")


def tiny(classes: int = 3) -> Hybrid:
    """Sixteen networks of 16 pixels."""
    return Hybrid(
        "tiny", 16, (Stage((8, 16), (1,)), Stage((8, 16), (1, 2), block=MB3D(2, 4, 8))), (0, 1), (1,), 1e-5, classes
    )


def lines(stem: Path) -> list[dict[str, Any]]:
    text = stem.with_name(stem.name + ".samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def visits(stem: Path) -> list[tuple[bool, int, str]]:
    """Of every visit but the reference's: whether it was made to calibrate, round and network."""
    return [
        (line.get("apart", False), line["r"], line["n"])
        for line in lines(stem)
        if "n" in line and line["n"] != REFERENCE
    ]


def in_turn(stem: Path) -> bool:
    """Whether the networks to calibrate on were visited before the others and after them."""
    return [apart for apart, _ in groupby(visits(stem), key=lambda visit: visit[0])] == [True, False, True]


def planned(stem: Path, rounds: int) -> set[tuple[bool, int, str]]:
    """The visits that a measurement makes at least."""
    header = lines(stem)[0]["header"]
    sessions = ((True, header["apart"]), (False, header["networks"]))
    return {(apart, number, name) for apart, names in sessions for number in range(rounds) for name in names}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    return measure_table(tiny(), TARGET, tmp_path_factory.mktemp("tables"), rounds=3)


def test_every_row_of_the_space_is_measured_with_its_spread(measured: LatencyTable) -> None:
    assert measured.rows.keys() == {row.key for row in tiny().rows}
    for row in measured.rows.values():
        # One visit at least: a busy machine disturbs the others.
        assert 0 <= row.p10 <= row.median <= row.p90 and row.mad >= 0 and row.n >= 1
    assert all(0 < measured.predict(arch).low <= measured.predict(arch).high < 50 for arch in tiny().probes())
    found = measured.content
    assert found.space == "tiny" and found.classes == (3,) and found.statistic in {"median", "p20", "p05"}
    assert 0 < found.reference_ms < 50 and found.calibration.nets >= 3
    assert measured.verdict.keys() == {"noise_floor", "drift", "disturbed", "rounds_redone", "good", "why", "interval"}


def test_the_samples_stay_beside_the_table_as_evidence(measured: LatencyTable) -> None:
    found = lines(measured.path)
    assert "header" in found[0] and found[-1] == {"end": True}
    counts = Counter(visits(measured.path))
    assert set(counts.values()) == {1}, "no network is visited twice in a round"
    assert in_turn(measured.path), "those to calibrate on are timed before and after the others"
    assert counts.keys() >= planned(measured.path, 3)
    ordered = [line for line in found if "n" in line]
    sessions = [[line["o"] for line in made] for _, made in groupby(ordered, key=lambda line: "apart" in line)]
    assert len(sessions) == 3 and all(orders == [*range(len(orders))] for orders in sessions)
    assert all(len(line["ms"]) >= 5 and min(line["ms"]) > 0 for line in ordered)
    stamps = [line["t"] for line in ordered]
    assert stamps == sorted(stamps) and time.time() - 3600 < stamps[0] < time.time()


def test_a_table_that_has_every_row_is_left_alone(measured: LatencyTable, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in measured.path.parent.iterdir()}
    assert measure_table(tiny(), TARGET, measured.path.parent, rounds=3) == measured
    assert {path: path.read_bytes() for path in measured.path.parent.iterdir()} == before
    assert "has every row" in capsys.readouterr().err


def test_only_the_rows_that_another_class_count_adds_are_measured(measured: LatencyTable, tmp_path: Path) -> None:
    for path in measured.path.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    more = measure_table(tiny(classes=9), TARGET, tmp_path, rounds=3)
    added = more.rows.keys() - measured.rows.keys()
    assert added and all("classes=9" in key for key in added)
    assert all(more.rows[key] == row for key, row in measured.rows.items())
    assert more.content.classes == (3, 9) and len(more.content.measurements) == 2
    assert more.predict(tiny(classes=9).largest).ms > 0 and more.predict(tiny().largest) == measured.predict(
        tiny().largest
    )
    assert more.reference == measured.reference and more.reference_ms == pytest.approx(measured.reference_ms)


def test_a_measurement_afresh_replaces_the_table(measured: LatencyTable, tmp_path: Path) -> None:
    for path in measured.path.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = measure_table(tiny(), TARGET, tmp_path, rounds=2, fresh=True)
    assert again.rows.keys() == measured.rows.keys() and again.rows != measured.rows
    assert next(line for line in lines(again.path) if "header" in line)["header"]["rounds"] == 2


def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds must be at least 1"):
        measure_table(tiny(), TARGET, tmp_path, rounds=0)
    with pytest.raises(InputError, match="threads"):
        measure_table(tiny(), Target.parse("cpu-ort-fp32-b1-t9999"), tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
from pathlib import Path
from nas.measure import measure_table
from tests.nas.test_measure import TARGET, tiny
measure_table(tiny(), TARGET, Path(sys.argv[1]), rounds=12)
"""


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_killed_measurement_resumes_without_losing_or_repeating_a_visit(tmp_path: Path, calibrated: bool) -> None:
    def recorded() -> int:
        """Visits of the session in which it is to be killed."""
        content = samples.read_bytes() if samples.exists() else b""
        return sum(line.startswith(b'{"s"') and (b'"apart"' not in line) == calibrated for line in content.split(b"\n"))

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    stem = table_stem(tiny(), TARGET, tmp_path)
    samples = stem.with_name(stem.name + ".samples.jsonl")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, env=environment)
    deadline = time.monotonic() + 90
    while recorded() < 30:
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came to its first visits"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = visits(stem)
    assert len(before) >= 15 and not stem.with_name(stem.name + ".json").exists()
    with samples.open("ab") as file:
        file.write(b'{"s":0,"r":99,"o"')  # a line that was being written

    with pytest.raises(InputError, match="--resume"):
        measure_table(tiny(), TARGET, tmp_path, rounds=12)
    with pytest.raises(InputError, match="seed differ"):
        measure_table(tiny(), TARGET, tmp_path, rounds=12, seed=1, resume=True)
    table = measure_table(tiny(), TARGET, tmp_path, rounds=12, resume=True)
    assert table.rows.keys() == {row.key for row in tiny().rows}
    after = visits(stem)
    assert after[: len(before)] == before and len(set(after)) == len(after)
    assert {visit for visit in after if visit[1] < 12} == planned(stem, 12)
    if calibrated:
        assert after.index(next(visit for visit in after if not visit[0])) == sum(apart for apart, *_ in before)
    assert in_turn(stem)


def test_what_a_kill_left_of_a_written_table_is_put_in_order(measured: LatencyTable, tmp_path: Path) -> None:
    """Killed when the JSON was there, before the rows had their name and the samples their end."""
    for path in measured.path.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    csv, samples = (tmp_path / f"{measured.path.name}{suffix}" for suffix in (".csv", ".samples.jsonl"))
    csv.rename(csv.with_name(csv.name + ".next"))
    samples.write_bytes(samples.read_bytes().removesuffix(b'{"end":true}\n'))
    (tmp_path / f"{TEMPORARY}{csv.name}-x.next").write_text("half")
    (tmp_path / f"{TEMPORARY}another.csv-x.next").write_text("somebody is writing it")
    measure_table(tiny(), TARGET, tmp_path, rounds=3, resume=True)
    (tmp_path / f"{TEMPORARY}another.csv-x.next").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def onnx_file(arch: Arch, path: Path, batch: int = 1) -> Path:
    path.write_bytes(export_onnx(arch.build(), arch.example(batch)))
    return path


def test_networks_and_files_are_timed_in_the_order_given_and_put_at_the_tables_clock(tmp_path: Path) -> None:
    space = tiny()
    path = onnx_file(space.largest, tmp_path / "net.onnx")
    archs: list[Arch | Path] = [space.largest, path, space.smallest, space.largest]
    found = time_networks(archs, TARGET, reference=space.largest, rounds=4)
    assert found[0] == found[3] and found[2].ms < min(found[0].ms, found[1].ms) and found[0].ms == found[0].raw_ms
    assert all(0 < t.p10 <= t.p90 and t.n >= 5 and t.noise >= 0 and t.drift == 1.0 for t in found)
    (scaled,) = time_networks([space.smallest], TARGET, reference=space.largest, reference_ms=50.0, rounds=2)
    assert scaled.ms == pytest.approx(scaled.raw_ms / scaled.drift) and scaled.drift < 0.1 and scaled.ms > 1


def test_validation_compares_predictions_with_networks_that_are_measured_whole(
    measured: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.validate.SITTING", 3)  # so that it takes two processes
    found = validate(measured, 5, seed=3, rounds=2, space=tiny())
    assert found["nets"] == 5 == len({one["arch"] for one in found["networks"]})
    errors = np.array([one["predicted_ms"] / one["measured_ms"] - 1 for one in found["networks"]])
    assert found["mape"] == pytest.approx(np.abs(errors).mean())
    assert [found[f"within_{limit}pct"] for limit in (3, 5, 10)] == pytest.approx(
        [np.mean(np.abs(errors) <= limit / 100) for limit in (3, 5, 10)]
    )
    inside = [net["low"] <= net["measured_ms"] <= net["high"] for net in found["networks"]]
    assert found["within_band"] == pytest.approx(sum(inside) / len(inside))
    assert -1 <= found["kendall_tau"] <= 1 and found["noise_floor"] >= 0 and found["drift"] > 0
    json.dumps(found, allow_nan=False)
    with pytest.raises(InputError, match="at least 2"):
        validate(measured, 1, seed=0)


def test_validation_refuses_a_foreign_table_unless_told(
    measured: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measured.content.fingerprint, "cpu", "Z80")
    with pytest.raises(InputError, match="another machine"):
        validate(measured, 2, seed=0, space=tiny())
    assert validate(measured, 2, seed=0, foreign=True, rounds=1, space=tiny())["nets"] == 2


def test_the_fast_exporter_gives_the_graph_of_the_slow_one(tmp_path: Path) -> None:
    arch = tiny().largest
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = arch.build().train()
    images = arch.example(seed=5).numpy()
    fast = tmp_path / "fast.onnx"
    fast.write_bytes(export_onnx(network, arch.example()))
    torch.onnx.export(network.eval(), (arch.example(),), tmp_path / "slow.onnx", dynamo=True, verbose=False)
    logits = [Session(path, TARGET).run(images) for path in (fast, tmp_path / "slow.onnx")]
    with torch.no_grad():
        wanted = network(torch.from_numpy(images)).numpy()
    assert np.abs(logits[0] - wanted).max() < 1e-5 and np.abs(logits[0] - logits[1]).max() < 1e-5


def test_a_session_gives_the_same_logits_after_it_was_closed_and_opened_again() -> None:
    session = RUNTIMES["ort"].from_arch(tiny().smallest, TARGET)
    images = tiny().smallest.example(seed=1).numpy()
    before = session.run(images)
    session.close()
    assert np.array_equal(session.run(images), before)
    session.reopen()
    assert np.array_equal(session.run(images), before) and before.shape == (1, 3)
    times = session.time(7)
    assert len(times) == 7 and min(times) > 0
    other = RUNTIMES["ort"].from_arch(tiny().smallest, TARGET)
    assert np.array_equal(other.run(images), before), "the random weights are the same ones on every day"


def workers() -> int:
    """Processes that prepare networks for this one."""
    children = [name for task in Path("/proc/self/task").glob("*/children") for name in task.read_text().split()]
    return sum(b"LokyProcess" in Path(f"/proc/{name}/cmdline").read_bytes() for name in children)


def test_networks_prepared_by_other_processes_are_those_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    archs = [tiny().largest, tiny().smallest]
    monkeypatch.setattr("nas.prepare.SHARE", 1)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    during, after = list[int](), list[int]()

    def timed(sessions: dict[str, Session], *_: object, **__: object) -> list[Visit]:
        after.append(workers())
        assert [*sessions] == [arch.id for arch in archs]
        for arch in archs:
            images = arch.example(seed=1).numpy()
            assert np.array_equal(sessions[arch.id].run(images), RUNTIMES["ort"].from_arch(arch, TARGET).run(images))
        return []

    def prepared(path: Path, target: Target, arch: Arch) -> Session:
        during.append(workers())
        return opened(path, target, arch)

    opened = onnxruntime.from_prepared
    monkeypatch.setattr("nas.timing.time_opened", timed)
    with patch("nas.runtimes.onnxruntime.from_prepared", prepared):
        time_sessions(archs, archs[0], TARGET, rounds=1, seed=0)
    assert max(during) == 2 and after == [0], "they have ended before anything is timed"
    late = zoo.arch("asvit_deit_tiny")
    with pytest.raises(InputError, match="one by one"):
        time_sessions([late, archs[0]], archs[0], Target.parse("cpu-ort-fp32-b2-t1"), rounds=1, seed=0)


class Killed(Runtime):
    def prepare(self, arch: Arch, target: Target, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_that_prepared_networks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.prepare.SHARE", 1)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    others = patch("nas.prepare.RUNTIMES", {"ort": Killed(**vars(RUNTIMES["ort"]))})
    with others, pytest.raises(InputError, match="one of 2 processes that prepare networks was killed"):
        time_sessions([tiny().largest, tiny().smallest], tiny().smallest, TARGET, rounds=1, seed=0)


def test_files_that_are_no_network_for_the_target_are_refused(tmp_path: Path) -> None:
    open_file = RUNTIMES["ort"].from_file
    with pytest.raises(InputError, match="does not exist"):
        open_file(tmp_path / "no.onnx", TARGET)
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"cannot load .*bad\.onnx"):
        open_file(tmp_path / "bad.onnx", TARGET)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot load .*empty\.onnx"):
        open_file(tmp_path / "empty.onnx", TARGET)
    torch.onnx.export(
        tiny().smallest.build().eval(),
        (tiny().smallest.example(),),
        tmp_path / "split.onnx",
        dynamo=True,
        verbose=False,
    )
    (tmp_path / "split.onnx.data").unlink()
    with pytest.raises(InputError, match=r"split\.onnx"):
        open_file(tmp_path / "split.onnx", TARGET)
    pair = onnx_file(tiny().smallest, tmp_path / "pair.onnx", batch=2)
    with pytest.raises(InputError, match="batches of 2"):
        open_file(pair, TARGET)
    assert open_file(pair, Target.parse("cpu-ort-fp32-b2-t1")).run(tiny().smallest.example(2).numpy()).shape == (2, 3)
    vector = tmp_path / "vector.onnx"
    vector.write_bytes(export_onnx(torch.nn.Linear(4, 2), torch.zeros(1, 4)))
    with pytest.raises(InputError, match="expected one input of images"):
        open_file(vector, TARGET)
