"""By which times `nas prune` holds a budget: those of the network, of its file, of a training's end, and after a kill."""

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
from nas.pruning.files import Delivered, Files
from nas.pruning.job import Job, job_of
from nas.pruning.sheets import sheets
from search_spaces import Arch
from tests.nas.pruning_toy import ARCH, FIXED, PARTS, TARGET, Prices, priced

HOW: dict[str, Any] = {"target": TARGET.name, "images": 64, "parts": PARTS}


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


def filed(times: list[float]) -> Any:
    """In place of exporting: files that take so long, one after the other, unless what they took is known."""
    left = iter(times)

    def made(files: Files, arch: Arch, weights: dict[str, Tensor], ms: float | None = None) -> Delivered:
        path = files.out / "model.onnx"
        return Delivered(path, Checked(0.0, 1.0, 1), path, next(left) if ms is None else ms)

    return patch("nas.pruning.files.Files.delivered", made)


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
    assert found["training"]["used"] and found["onnx_measured_ms"] == 0.97 * BUDGET, "the median of three"
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
    assert found["onnx_measured_ms"] == 0.98 * BUDGET


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
    assert found["after"]["measured_ms"] <= 1.0005 * dense and found["onnx_measured_ms"] == 0.5 * dense
    assert found["after"]["macs"] < macs(ARCH)


def test_by_which_statistic_a_budget_holds_is_said(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = Prices.timed
    with patch.object(
        Prices, "timed", lambda self, arch: SimpleNamespace(**{**vars(timed(self, arch)), "median": 9.0})
    ):
        found = prune_network(str(vit), "toy", tmp_path / "run", speedup=1.5, **HOW)
    said = capsys.readouterr().err
    assert found["statistic"] == "p05" and "holds by prices's statistic, p05 of the runs; their median is 9 ms" in said
    assert (
        f"promised a divergence of {found['surrogate']['promised']:.3g}; {found['divergence']:.3g} came of it" in said
    )
    assert sheets(found)[0].rows[2][0] == "measured ms (p05 of the runs)"


def test_frames_that_do_not_pay_are_named(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(str(vit), "toy", None, TARGET.name, None, 64, PARTS, 0, False)
    with patch.object(Prices, "predict", lambda self, arch: SimpleNamespace(ms=1.0)):
        found = replace(job, parts=("heads", "tokens")).prunable()
    said = capsys.readouterr().err
    assert found.idle and all(
        f"{one.label}: no faster than the dense network on {TARGET.name}, left out" in said for one in found.idle
    )
