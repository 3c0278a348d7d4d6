"""The README's commands, one after the other, on a space and data that take seconds; fields and exit codes of the contract."""

import json
from pathlib import Path

import pytest

from nas.runs import read_arch
from tests.cli.running import nas, started
from tests.nas.toy import toy_space, toy_vit

TARGET = "cpu-ort-fp32-b1-t1"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_a_supernet_to_a_file(tmp_path: Path) -> None:
    found = nas("measure", "--space", "hybrid_toy", "--classes", 4, "--rounds", 4, run=started)
    assert found["rows"] > 10 and found["seconds"] > 0 and "noise_floor" in found["quality"]
    table = Path(found["table"])
    before = table.read_text()
    measure = ("measure", "--space", "hybrid_toy", "--classes", 4, "--rounds", 4)
    assert nas(*measure)["table"] == str(table) and table.read_text() == before, "what is there is not measured again"
    assert nas(*measure, "--fresh")["rows"] == found["rows"] and table.read_text() != before
    other = ("--target", "cpu-ort-fp32-b2-t1", "--from", table, "--nets", 8, "--out", tmp_path / "adapted")
    adapted = nas(*measure, *other)
    assert adapted["rows"] == found["rows"] and adapted["table"].startswith(str(tmp_path / "adapted"))
    assert adapted["quality"]["why"].startswith(f"adapted from {table.stem} by 8 networks")
    flags = ("--largest-epochs", 1, "--epochs", 4, "--batch-size", 32, "--opt", "nadamw")
    trained = nas("train", "--space", "hybrid_toy", "--data", "toy", *flags, "--out", tmp_path / "s")
    assert json.loads((tmp_path / "s" / "largest" / "config.json").read_text())["recipe"]["epochs"] == 1
    assert json.loads((tmp_path / "s" / "config.json").read_text())["recipe"]["opt"] == "nadamw"
    assert trained["largest_acc"] > 0.5 and trained["smallest_acc"] > 0.2

    largest = tmp_path / "largest.json"
    largest.write_text(toy_space().largest.to_json())
    most = nas("describe", largest, "--table", table)["predicted_ms"]
    assert nas("describe", largest, "--target", TARGET)["predicted_ms"] == most, "where measure writes, --target looks"
    search = ("search", "--supernet", tmp_path / "s", "--table", table, "--trials", 12)
    least = nas(*search, "--budget-ms", most / 1000, "--out", tmp_path / "none", code=3)
    assert "the cheapest network takes 0.0" in least and not (tmp_path / "none").exists()
    budgets = f"{1.5 * most},{2 * most}"  # far above: tests run beside each other, and times with them
    results = nas(*search, "--budget-ms", budgets, "--out", tmp_path / "found", run=started)
    assert results["evaluations"] == 12 and results["seconds"] > 0
    for result in results["results"]:
        assert result["measured_ms"] <= result["budget_ms"] and result["peak_mb"] > 0
        assert (tmp_path / "found" / result["arch"]).is_file() and 0 < result["search_acc"] <= 1
    beside = ("--table", adapted["table"], "--budget-ms", 2 * most, "--budget-ms", 1000)
    (result,) = nas(*search, *beside, "--out", tmp_path / "both")["results"]
    assert [one["target"] for one in result["targets"]] == [TARGET, "cpu-ort-fp32-b2-t1"]
    assert [one["budget_ms"] for one in result["targets"]] == [2 * most, 1000]
    assert result["targets"][0]["measured_ms"] == result["measured_ms"] < result["targets"][1]["measured_ms"]

    for command in (("export", "--out", tmp_path / "e"), ("profile",)):
        assert "choose one with --budget-ms" in nas(*command, tmp_path / "found", code=2)
    first = results["results"][0]["budget_ms"]
    profiled = nas("profile", tmp_path / "found", "--budget-ms", first, "--rounds", 4, "--no-plateau")
    winner = Path(tmp_path / "found" / results["results"][0]["arch"])
    assert profiled["network"] == nas("describe", winner)["id"] and profiled["total_ms"] > 0
    start = nas("export", tmp_path / "found", "--budget-ms", first, "--out", tmp_path / "e", "--data", "toy")
    untrained = nas("evaluate", start["path"], "--data", "toy", "--split", "val")
    assert untrained["acc"] == pytest.approx(results["results"][0]["search_acc"], abs=0.05), "the supernet's weights"

    teacher = nas("retrain", largest, "--data", "toy", "--epochs", 2, "--batch-size", 32, "--out", tmp_path / "teacher")
    retrain = ("retrain", tmp_path / "found", "--budget-ms", first, "--data", "toy", "--epochs", 1, "--batch-size", 32)
    trained = nas(*retrain, "--teacher", tmp_path / "teacher", "--out", tmp_path / "n")
    assert trained["teacher_acc"] == teacher["test_acc"] and Path(trained["weights"]).is_file()

    exported = nas("export", tmp_path / "n", "--table", table, "--data", "toy", "--out", tmp_path / "e2", run=started)
    assert exported["max_abs_diff"] <= 1e-4 and exported["top1_agreement"] >= 0.999 and exported["images"] == 512
    assert exported["measured_ms"] > 0 and exported["predicted_ms"] > 0
    assert exported["peak_mb"] > exported["weights_mb"] > 0
    run, file = (nas("evaluate", path, "--data", "toy") for path in (tmp_path / "n", exported["path"]))
    assert run["acc"] == file["acc"] == trained["test_acc"] and run["images"] == 512 and run["ms_per_image"] > 0

    batched = nas("export", tmp_path / "n", "--target", "cpu-ort-fp32-b3-t1", "--out", tmp_path / "e3")
    assert nas("evaluate", batched["path"], "--data", "toy")["acc"] == trained["test_acc"]
    validated = nas("validate", table, "--nets", 3)
    assert validated["nets"] == 3 and {"within_5pct", "mape", "kendall_tau", "noise_floor"} <= validated.keys()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_space_of_vits_too(tmp_path: Path) -> None:
    """The same way, shortened: no command may take every space for a hybrid."""
    table = nas("measure", "--space", "vit_toy", "--classes", 4, "--rounds", 4)["table"]
    flags = ("--data", "toy", "--epochs", 1, "--batch-size", 64)
    trained = nas("train", "--space", "vit_toy", *flags, "--out", tmp_path / "s")
    assert 0 <= trained["smallest_acc"] <= 1
    search = ("search", "--supernet", tmp_path / "s", "--table", table, "--trials", 3, "--budget-ms", 50)
    (result,) = nas(*search, "--out", tmp_path / "found")["results"]
    assert toy_vit().contains(read_arch(tmp_path / "found" / result["arch"])) and result["predicted_ms"] > 0
    assert 0 <= nas("retrain", tmp_path / "found", *flags, "--out", tmp_path / "n")["test_acc"] <= 1
    assert nas("validate", table, "--nets", 2)["nets"] == 2
