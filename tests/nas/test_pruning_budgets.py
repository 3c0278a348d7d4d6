"""By which times `nas prune` holds a budget: those of the network, of its file, of a training's end, and after a kill."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from nas.cost import macs
from nas.errors import BudgetError
from nas.export import Checked
from nas.pruning import Healing, prune_network
from nas.pruning.files import Delivered, Files, FileTimes
from nas.pruning.job import Job, job_of
from nas.pruning.sheets import sheets
from search_spaces import Arch, InputError
from tests.nas.pruning_toy import ARCH, FIXED, HOW, PARTS, TARGET, Prices, priced


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


def filed(times: list[float]) -> Any:
    """In place of exporting: files that take so long, one after the other, unless what they took is known."""
    left = iter(times)

    def made(files: Files, arch: Arch, weights: dict[str, Tensor], times: FileTimes | None = None) -> Delivered:
        path = files.out / "model.onnx"
        return Delivered(path, Checked(0.0, 1.0, 1), path, times or FileTimes(MIN * (ms := next(left)), ms))

    return patch("nas.pruning.files.Files.delivered", made)


MIN = 0.9  # of the median of a file's runs, the table's statistic
BUDGET = FIXED + macs(ARCH) / 2.5e6


def test_a_trained_network_is_as_fast_as_it_was(vit: Path, tmp_path: Path) -> None:
    """Its arch is not timed again, and one timing of its file above the budget does not undo a training."""
    how: dict[str, Any] = {"budget_ms": BUDGET, "healing": Healing(1, 64), **HOW}
    known = FIXED + macs(ARCH) / 1e6
    with (
        filed([BUDGET * share for share in (0.98, 1.001, 0.97, 0.96)]),
        patch.object(Job, "measured", counted := Counted(Job.measured)),
    ):
        found = prune_network(str(vit), "toy", tmp_path / "run", **how)
    assert found["training"]["used"] and found["onnx_measured_median_ms"] == 0.97 * BUDGET, "the median of three"
    assert counted.archs == [1, 2] and found["before"]["measured_ms"] == known
    assert found["after"]["measured_ms"] <= 0.99 * BUDGET, "with room for timings to come"
    slow = filed([0.98 * BUDGET, *[1.01 * BUDGET] * 3])
    line = rf"trained, the network takes {1.01 * BUDGET:.4g} ms.*the cheapest network of these blocks is predicted to take \d"
    with slow, pytest.raises(BudgetError, match=line):
        prune_network(str(vit), "toy", tmp_path / "slow", **how)


@dataclass
class Counted:
    """A method, and of how many networks each call of it was."""

    method: Any
    archs: list[int] = field(default_factory=list)

    def __get__(self, job: Job, kind: type[Job]) -> Any:
        return lambda archs: self.archs.append(len(archs)) or self.method(job, archs)


def test_what_a_file_took_is_not_timed_again_after_a_kill(vit: Path, tmp_path: Path) -> None:
    """Another timing would be another figure, and could be over the budget."""
    how: dict[str, Any] = {"budget_ms": BUDGET, **HOW}
    with filed([0.98 * BUDGET]):
        with patch("nas.pruning.outcome", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            prune_network(str(vit), "toy", tmp_path / "run", **how)
        found = prune_network(str(vit), "toy", tmp_path / "run", resume=True, **how)
    assert found["onnx_measured_median_ms"] == 0.98 * BUDGET
    assert found["onnx_measured_ms"] == pytest.approx(MIN * 0.98 * BUDGET)


def test_a_run_that_held_another_statistic_is_not_gone_on_with(vit: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"budget_ms": BUDGET, **HOW}
    with patch("nas.pruning.outcome", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        prune_network(str(vit), "toy", tmp_path / "run", **how)
    path = tmp_path / "run" / "calibrated" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("held_by") == "median"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds a run with held_by"):
        prune_network(str(vit), "toy", tmp_path / "run", resume=True, **how)


@pytest.mark.parametrize("file", [1.0, 1.01], ids=["measured", "the file"])
def test_a_dense_network_that_holds_by_chance_is_pruned(file: float, vit: Path, tmp_path: Path) -> None:
    """A budget just above what it took: measured again it takes longer, or its file does."""
    dense, measured, calls = FIXED + macs(ARCH) / 1e6, Job.measured, []

    def slower(job: Job, archs: list[Arch]) -> list[dict[str, float]]:
        calls.append(archs)
        late = 1.001 if len(calls) > 1 and file == 1.0 else 1.0
        return [{name: ms * late for name, ms in one.items()} for one in measured(job, archs)]

    with patch.object(Job, "measured", slower), filed([*[file * dense] * 4, *[0.5 * dense] * 9][4 * (file == 1.0) :]):
        found = prune_network(str(vit), "toy", tmp_path / "run", budget_ms=1.0005 * dense, **HOW)
    assert found["after"]["measured_ms"] <= 1.0005 * dense and found["onnx_measured_median_ms"] == 0.5 * dense
    assert found["after"]["macs"] < macs(ARCH)


@pytest.mark.parametrize("spread", [1.2, 1.0], ids=["what is left spreads more", "the dense network, too"])
def test_budgets_hold_by_the_median_of_the_runs(
    spread: float, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's statistic alone, in whose milliseconds it predicts, would let half of the runs be over them."""
    timed, dense = Prices.timed, ARCH.id

    def scattered(self: Prices, arch: Arch) -> Any:
        found = timed(self, arch)
        return SimpleNamespace(**{**vars(found), "median": found.ms * (1.1 if arch.id == dense else 1.1 * spread)})

    with patch.object(Prices, "timed", scattered):
        found = prune_network(str(vit), "toy", tmp_path / "run", budget_ms=BUDGET, **HOW)
        faster = prune_network(str(vit), "toy", tmp_path / "faster", speedup=1.5, **HOW)
    after, said = found["after"], capsys.readouterr().err
    assert found["statistic"] == "p05" and 0.9 * BUDGET < after["measured_median_ms"] <= BUDGET
    assert after["measured_ms"] == pytest.approx(after["measured_median_ms"] / 1.1 / spread)
    assert ("over the budget" in said) is (spread > 1), "the first limit is the budget as the dense network spreads"
    before = faster["before"]["measured_median_ms"]
    assert faster["budget_ms"] == before / 1.5 and before / faster["after"]["measured_median_ms"] >= 1.5
    assert faster["speedup_measured"] == before / faster["after"]["measured_median_ms"]
    sum_of_losses = (
        f"promised a divergence of {found['surrogate']['promised']:.3g}; {found['divergence']:.3g} came of it"
    )
    assert sum_of_losses in said
    labels = [row[0] for row in sheets(found)[0].rows]
    assert labels[2:4] == ["measured ms (p05 of the runs)", "median, by which budgets hold"]


def test_frames_that_do_not_pay_are_named(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(str(vit), "toy", None, TARGET.name, None, 64, PARTS, 0, False)
    with patch.object(Prices, "predict", lambda self, arch: SimpleNamespace(ms=1.0)):
        found = replace(job, parts=("heads", "tokens")).prunable()
    said = capsys.readouterr().err
    assert found.idle and all(
        f"{one.label}: no faster than the dense network on {TARGET.name}, left out" in said for one in found.idle
    )
