"""What a pruning leaves behind: the exported file, timed in a process of its own, tables, report and rivals."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress import calibrate
from compress.prune import BudgetTooSmall, Pruned, Surrogate
from compress.slicing import BlockSize
from nas.errors import BudgetError
from nas.files import write_json
from nas.pruning.choice import SPARE, TRIES, within
from nas.pruning.files import Delivered, Files, FileTimes, retimed
from nas.pruning.saved import saved
from nas.pruning.sheets import print_sheets, sheets
from nas.report import report_run
from nas.runs import Run, save_weights
from nas.runtimes import RUNTIMES
from nas.target import Target
from nas.thresholded import Spread
from nas.timing import Timing
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from search_spaces.spaces.frames import Frame, whole_frame
from tests.cli.running import nas
from tests.nas.test_measure import TARGET
from tests.nas.test_pruning_rivals import NAMES, job_on
from tests.search_spaces.test_token_prune import network, vit

BLOCK = MB3D(2, 8, 8, 64 / 32, residual="plain", bias=False)
ARCH = Arch(32, 3, (Patch(32, 8), ClassToken(), Position(), BLOCK, BLOCK, Head(10, pool="token")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """A run with rivals, by the command."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    save_weights(folder / "vit.safetensors", ARCH.build().state_dict(), ARCH)
    flags = (
        "--data",
        "digits",
        "--target",
        TARGET.name,
        "--parts",
        "heads,neurons,blocks",
        "--images",
        32,
        "--speedup",
        1.4,
        "--baselines",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        yield nas("prune", folder / "vit.safetensors", *flags, "--out", folder / "run"), folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_file_is_checked_and_timed_and_holds_the_budget(run: tuple[dict[str, Any], Path]) -> None:
    found, out = run
    assert found["onnx"] == found["onnx_timed"] == str(out / "model.onnx")
    assert found["onnx_max_abs_diff"] <= 1e-4 and found["onnx_top1_agreement"] >= 0.999
    assert 0 < found["onnx_measured_ms"] <= found["onnx_measured_median_ms"] <= found["budget_ms"]
    assert found["after"]["measured_median_ms"] <= found["budget_ms"]
    assert found["agrees"] == found["onnx_measured_ms"] / found["after"]["measured_ms"]
    session = RUNTIMES["ort"].from_file(out / "model.onnx", TARGET)
    assert session.run(ARCH.example(3).numpy()).shape == (3, 10)
    assert {"measured_median_ms", "measured_mean_ms", "measured_p95_ms"} <= found["before"].keys() & found[
        "after"
    ].keys()
    assert json.loads((out / "summary.json").read_text()) == found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rivals_stand_beside_the_result(run: tuple[dict[str, Any], Path]) -> None:
    found, _ = run
    rows = {row["name"]: row for row in found["baselines"]}
    assert list(rows) == NAMES
    for name in ("dense", "pruned"):
        figures = found["before" if name == "dense" else "after"]
        assert {key: rows[name][key] for key in ("params", "macs", "acc")} == {
            key: figures[key] for key in ("params", "macs", "acc")
        }
    assert all((row["measured_ms"] is None) == row["note"].startswith("not available") for row in rows.values())
    assert rows["int8"]["measured_ms"] > 0, "the file in int8 is timed on the target"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tables_and_report_say_what_the_summary_does(
    run: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, out = run
    figures, blocks, rivals = sheets(found)
    assert len(blocks.rows) == 2 and [row[0] for row in rivals.rows] == NAMES
    assert [f"{found[side]['measured_p95_ms']:.4g}" for side in ("before", "after")] == [
        *next(row for row in figures.rows if row[0] == "p95")[1:3]
    ]
    first = found["blocks"][0]
    assert blocks.rows[0][2:5] == (
        f"{first['params'][0]:,} to {first['params'][1]:,}",
        f"{first['macs'][0]:,} to {first['macs'][1]:,}",
        f"{first['ms'][0]:.4g} to {first['ms'][1]:.4g}",
    )
    older = [{name: row[name] for name in row if name not in ("params", "macs", "ms")} for row in found["blocks"]]
    assert sheets({**found, "blocks": older})[1].rows[0] == (*blocks.rows[0][:2], *blocks.rows[0][5:])
    held_by_another = {name: value for name, value in found.items() if name != "onnx_measured_median_ms"}
    assert [sheets(one)[0].rows[3][0] for one in (found, held_by_another)] == [
        "median, by which budgets hold",
        "median",
    ]
    by_images = sheets({**found, "onnx_measured_ms": 1.25, "onnx_measured_p95_ms": 1.5})[0].rows[-2:]
    assert [row[2] for row in by_images] == ["1.25", "1.5"] and "p95 of its file over images" in by_images[1][0]
    print_sheets(found)
    shown = capsys.readouterr()
    assert "before and after" in shown.err and f"{found['after']['params']:,}" in shown.err and not shown.out
    page = (out / "report.html").read_text()
    assert found["report"] == str(out / "report.html") and "<script src=" not in page and "<link" not in page
    assert f"<td>{found['before']['macs']:,}</td>" in page and "Plotly.newPlot" in page
    (out / "report.html").unlink()
    assert nas("report", out)["path"] == found["report"] and (out / "report.html").read_text().count("<table") == 4


def test_reports_are_of_finished_runs_that_have_one(tmp_path: Path) -> None:
    for kind, line in (("prune", "is unfinished; go on with `nas prune`"), ("retrain", "is a retrain run")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"kind": kind}))
        with pytest.raises(InputError, match=line):
            report_run(tmp_path / kind)


def test_a_report_without_its_table_is_refused(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", "quickstart", {}, resume=False)
    run.finish({"results": []})
    Run.start(run.path / "search", "search", {}, resume=False)
    with pytest.raises(InputError, match="holds no latency table; restore it"):
        report_run(run.path)
    write_json(run.path / "table" / "t.json", {"rows": 1})
    with pytest.raises(InputError, match=r"t\.json|t\.csv"):
        report_run(run.path)


@pytest.mark.parametrize("surrogate", [None, Surrogate(0.125, 1.5, 3)])
def test_what_calibration_gave_is_found_again(surrogate: Surrogate | None, tmp_path: Path) -> None:
    """All of it: also what the sum of losses said."""
    weights = dict(ARCH.build().state_dict())
    sizes, frame = {3: None, 4: BlockSize(2, 8, 8, 32)}, Frame(32, 32, ((1, 8),), "fused", ((1, 0.5),))
    given = Pruned(ARCH, weights, 0.5, 1.0, 0.25, sizes, frame, surrogate)
    saved(tmp_path / "run", {}, lambda: (given, [{"measured_ms": 2.0}]))
    found, times = saved(tmp_path / "run", {}, lambda: pytest.fail("made again"))
    assert replace(found, weights={}) == replace(given, weights={}) and times == [{"measured_ms": 2.0}]
    assert all(torch.equal(found.weights[name], weight) for name, weight in weights.items())


OTHER = replace(ARCH, image_size=2 * ARCH.image_size)


def times(ms: float) -> dict[str, float]:
    return {"measured_ms": ms, "measured_median_ms": ms}


def choosing(files_ms: list[float], budget: float) -> tuple[list[float], float | None]:
    """The limits that were asked for, and what the file of the network that was chosen takes; `files_ms` are those of the files."""
    limits: list[float] = []
    left = iter(files_ms)

    def cut(budgets: tuple[float, ...], frame: Frame | None = None) -> Pruned:
        assert frame == (whole_frame(ARCH) if limits else None), "another try is of the same frame"
        (limit,) = budgets
        limits.append(limit)
        return Pruned(ARCH, {}, limit, 1.0, 0.0, {}, whole_frame(ARCH))

    def measured(archs: list[Arch]) -> list[dict[str, float]]:
        return [times(2 * budget), times(0.9 * budget)]

    job: Any = SimpleNamespace(
        prunable=lambda: SimpleNamespace(within=cut, cheapest=lambda budgets: (3.0,)),
        measured=measured,
        named=SimpleNamespace(arch=OTHER),
        table=SimpleNamespace(path=Path("rows"), target=TARGET),
    )
    files: Any = SimpleNamespace(job=job, delivered=lambda arch, weights: filed(next(left)), dense_times=times(1.0))
    return limits, within([files], (budget,)).taken[0].file_ms


def filed(ms: float) -> Delivered:
    checked: Any = None
    return Delivered(Path(), checked, Path(), FileTimes(ms, ms))


def test_a_file_over_the_budget_is_replaced() -> None:
    limits, ms = choosing([12.0, 8.0, 7.0], 10.0)
    assert ms == 8.0 and limits == pytest.approx([10.0, 10.0 * SPARE * 10 / 12])
    line = rf"takes 12 ms, above 10 ms, and the cheapest network .* to take 3 ms; .* remove rows.csv and .json and prune again with --target {TARGET.name}"
    with pytest.raises(BudgetError, match=line):
        choosing([12.0] * TRIES, 10.0)


@pytest.mark.parametrize(
    "dense", [False, True], ids=["a frame that has no more", "the dense network, which was mispriced"]
)
def test_another_frame_is_tried_where_one_cannot_hold_the_budget(
    dense: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Frame | None] = []

    def cut(budgets: tuple[float, ...], frame: Frame | None = None) -> Pruned:
        asked.append(frame)
        if frame is not None:
            raise BudgetTooSmall(budgets, 9.9)
        arch = ARCH if len(asked) == 1 else OTHER
        return Pruned(arch, {}, budgets[0], 1.0, 0.0, {}, whole_frame(arch))

    def measured(archs: list[Arch]) -> list[dict[str, float]]:
        return [times(20.0), times(11.0 if archs[1] == ARCH else 9.0)]

    prunable = SimpleNamespace(within=cut, cheapest=lambda budgets: (3.0,))
    named = SimpleNamespace(arch=ARCH if dense else replace(ARCH, image_size=4 * ARCH.image_size))
    job: Any = SimpleNamespace(prunable=lambda: prunable, measured=measured, named=named)
    files: Any = SimpleNamespace(job=job, delivered=lambda arch, weights: filed(9.0), dense_times=times(1.0))
    assert within([files], (10.0,)).found.arch == OTHER
    assert asked == ([None, None] if dense else [None, whole_frame(ARCH), None])
    assert ("trying all others" in capsys.readouterr().err) is not dense


@pytest.mark.parametrize("name", ["cpu-eager-fp32-b2-t1", "cpu-ort-int8-b2-t1"])
def test_files_for_other_targets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target runs no ONNX it is not timed; where it computes in int8, the file that is."""
    monkeypatch.setattr(
        "nas.pruning.files.retimed",
        lambda files, *how: [SimpleNamespace(ms=9.0, median=9.5), SimpleNamespace(ms=3.0, median=3.5)],
    )
    job = job_on(Target.parse(name))
    (tmp_path / "out").mkdir()
    found = Files(job, tmp_path / "out", tmp_path).delivered(job.named.arch, job.network.state_dict())
    summary = found.summary(measured_ms=4.0)
    assert found.checked.top1_agreement >= 0.999 and (tmp_path / "out" / "model.onnx").exists()
    if "eager" in name:
        assert summary["onnx_measured_ms"] is None is summary["agrees"] and not found.over(1.0)
    else:
        assert summary["onnx_measured_ms"] == 3.0 and summary["agrees"] == 0.75
        assert summary["onnx_measured_median_ms"] == 3.5 and found.over(3.4) and not found.over(3.5)
        assert found.timed == tmp_path / "out" / "model.int8.onnx"
        assert (
            b"QuantizeLinear" in found.timed.read_bytes()
            and b"QuantizeLinear" in (tmp_path / "dense.onnx").read_bytes()
        )
        assert RUNTIMES["ort"].from_file(found.timed, job.table.target).classes == 10


def test_a_file_with_thresholds_is_timed_on_images_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own; its time is the mean over them."""
    arch = vit((40, 20), True).with_classes(10)
    built, seen = network(arch), []

    def noted(*how: Any) -> list[Timing]:
        seen.append(retimed(*how))
        return seen[-1]

    monkeypatch.setattr("nas.pruning.files.retimed", noted)
    monkeypatch.setattr("nas.pruning.files.TIMED", 3)
    table: Any = SimpleNamespace(target=TARGET, reference=ARCH, reference_ms=None, statistic="median")
    calibrate(built, arch, [(arch.example(8), torch.zeros(8))])
    found = Files(replace(job_on(TARGET), table=table), tmp_path, tmp_path).delivered(arch, built.state_dict())
    (times,) = seen
    assert found.times is not None
    assert len(times) == 3 and found.times.ms == pytest.approx(sum(timing.ms for timing in times) / 3)
    assert found.times.median_ms == pytest.approx(sum(timing.median for timing in times) / 3)
    p95 = found.summary(1.0)["onnx_measured_p95_ms"]
    assert p95 == Spread.of([timing.ms for timing in times]).p95 > found.times.ms
    assert found.timed == found.path and found.checked.top1_agreement >= 0.999
