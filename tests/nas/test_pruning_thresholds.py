"""Thresholds in `nas prune --adaptive`: learned or solved for, held at the budget, and switched off where they do not pay."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from compress.prune import Pruned, prepare
from nas.export import Checked
from nas.networks import network_named
from nas.pruning import Healing, prune_network
from nas.pruning.choice import SPARE
from nas.pruning.files import Delivered, Files, FileTimes
from nas.pruning.heal import heal, with_thresholds
from nas.pruning.job import Job, job_of
from nas.runs import Run, digest, load_weights
from nas.target import Target
from search_spaces import Arch, InputError
from search_spaces.blocks import TokenPrune
from tests.nas.pruning_toy import (
    ARCH,
    FIXED,
    HOW,
    PARTS,
    THRESHOLDS,
    Prices,
    priced,
    scattered,
)

HEALING = Healing(epochs=2, batch_size=32)


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


def token_pruned(vit: Path) -> tuple[Arch, dict[str, torch.Tensor]]:
    """The toy's ViT without half of its patches behind the first block, with weights where they belong then."""
    blocks = ARCH.blocks
    arch = replace(ARCH, blocks=(*blocks[:4], TokenPrune(6), *blocks[4:]))
    held = load_weights(vit)

    def moved(name: str) -> str:
        _, number, rest = name.split(".", 2)
        return name if int(number) < 4 else f"blocks.{int(number) - 1}.{rest}"

    return arch, {name: held[moved(name)] for name in arch.build().state_dict()}


@pytest.fixture
def job(vit: Path) -> Job:
    return job_of(str(vit), "toy", None, Prices().target.name, None, 64, PARTS, 0, False)


def test_thresholds_are_learned_and_held_at_the_budget(
    vit: Path, job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch, weights = token_pruned(vit)
    found = replace(job.dense(), arch=arch, weights=weights)
    budget = job.table.predict(arch).ms
    left, told = heal(job, found, tmp_path / "t", replace(HEALING, adaptive=True), budget)
    assert left.arch.keeping(adaptive=True) == left.arch and told["cost_unit"] == "ms" and told["target_cost"] == budget
    curve = job.table.curve(arch)
    counts = torch.tensor([[float(told["kept"][0])]])
    assert told["held_cost"] <= budget and told["mean_cost"] == pytest.approx(
        float(curve(list(counts))) + THRESHOLDS, rel=0.01
    )
    assert told["mean_cost"] - THRESHOLDS < job.table.predict(ARCH).ms - FIXED and told["val_acc"] > 0.5
    taught = {"weights": digest(job.network.state_dict()), "weight": 0.5, "temperature": 1.0}
    assert Run.open(tmp_path / "t").config["teacher"] == taught
    loose, _ = heal(job, found, tmp_path / "loose", replace(HEALING, adaptive=True), 100.0)
    assert loose.arch == arch, "a budget that all patches hold needs no thresholds"
    assert "every patch may stay within 100 ms: there is nothing for thresholds to do" in capsys.readouterr().err


TOKENS = {**HOW, "parts": ("heads", "tokens")}


@pytest.mark.parametrize("epochs", [0, 1], ids=["solved", "learned"])
def test_thresholds_that_take_too_long_are_set_for_less(
    epochs: int, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.pruning.attempt.harmed", lambda job, before, after: False)
    measured, late = Job.measured, []

    def slower(job: Job, archs: list[Arch]) -> list[dict[str, float]]:
        times = measured(job, archs)
        if len(archs) == 2 and archs[1] != archs[1].keeping(adaptive=False) and len(late) < 3:
            late.append(archs[1])
            times[1] = {name: 1.05 * ms for name, ms in times[1].items()}
        return times

    monkeypatch.setattr(Job, "measured", slower)
    healing = Healing(epochs, adaptive=True) if epochs == 0 else Healing(epochs, batch_size=32, adaptive=True)
    found = prune_network(str(vit), "toy", tmp_path / "run", speedup=1.6, healing=healing, **TOKENS)
    named, run = network_named(str(tmp_path / "run")), Run.open(tmp_path / "run")
    assert named.arch.locations and named.arch == named.arch.keeping(adaptive=True)
    assert "over the budget of" in capsys.readouterr().err and len(late) == 3
    assert found["training"]["held_cost"] <= found["budget_ms"] / 1.05 and found["training"]["epochs"] == epochs
    assert found["after"]["measured_ms"] <= found["budget_ms"]
    assert found["predicted_ms"] == pytest.approx(found["training"]["held_cost"])
    calibrated = Run.open(tmp_path / "run" / "calibrated").weights()
    own = {name: weight for name, weight in run.weights().items() if "threshold" not in name}
    assert (digest(own) == digest(calibrated)) is (epochs == 0), (
        "without training weights stay as calibration left them"
    )


def test_thresholds_are_set_for_how_the_runs_spread(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of the median, which is 1.2 times the statistic in which they are priced."""
    limits: list[float] = []

    def noted(job: Job, found: Pruned, out: Path, healing: Healing, limit: float) -> Any:
        limits.append(limit)
        return with_thresholds(job, found, out, healing, limit)

    monkeypatch.setattr("nas.pruning.attempt.harmed", lambda job, before, after: False)
    monkeypatch.setattr("nas.pruning.attempt.with_thresholds", noted)
    monkeypatch.setattr(Prices, "timed", scattered(Prices.timed, 1.2))
    found = prune_network(str(vit), "toy", tmp_path / "run", speedup=1.6, healing=Healing(adaptive=True), **TOKENS)
    assert limits[0] == pytest.approx(SPARE * found["budget_ms"] / 1.2)
    assert found["after"]["measured_median_ms"] <= found["budget_ms"]


LATE = 1.01 * Prices().predict(ARCH).ms / 1.6  # milliseconds, just over a budget of a speed-up of 1.6


def adaptive(arch: Arch) -> bool:
    return arch != arch.keeping(adaptive=False)


def behind(measured: Any) -> Any:
    """`Job.measured`, where networks with thresholds take `LATE`, whatever they keep."""

    def found(job: Job, archs: list[Arch]) -> list[dict[str, float]]:
        times = measured(job, archs)
        late = dict.fromkeys(("measured_ms", "measured_median_ms"), LATE)
        return [{**own, **late} if adaptive(arch) else own for arch, own in zip(archs, times, strict=True)]

    return found


@pytest.mark.parametrize(
    ("how", "epochs"), [("priced", 1), ("measured", 0), ("file", 1), ("harmful", 0), ("harmful", 1)]
)
def test_thresholds_that_do_not_pay_are_switched_off(
    how: str,
    epochs: int,
    vit: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that cost more than all patches but one would save, with which network or file are never within the budget, or that do harm."""
    timed = Prices.timed

    def slow(self: Prices, arch: Arch) -> Any:
        return SimpleNamespace(**{name: ms + adaptive(arch) for name, ms in vars(timed(self, arch)).items()})

    def harm(job: Job, before: Pruned, after: Pruned) -> bool:
        return how == "harmful" and adaptive(after.arch)

    def exported(
        files: Files, arch: Arch, weights: dict[str, torch.Tensor], times: FileTimes | None = None
    ) -> Delivered:
        path = files.out / "model.onnx"
        path.write_text(arch.id)
        ms = LATE if how == "file" and adaptive(arch) else 1e-3
        return Delivered(path, Checked(0.0, 1.0, 1), path, FileTimes(ms, ms))

    if how == "priced":
        monkeypatch.setattr(Prices, "timed", slow)
    if how == "measured":
        monkeypatch.setattr(Job, "measured", behind(Job.measured))
    monkeypatch.setattr("nas.pruning.attempt.harmed", harm)
    monkeypatch.setattr("nas.pruning.files.Files.delivered", exported)
    given = Healing(epochs, batch_size=64 if epochs else Healing().batch_size, adaptive=True)
    found = prune_network(str(vit), "toy", tmp_path / "run", speedup=1.6, healing=given, **TOKENS)
    left, said = network_named(str(tmp_path / "run")).arch, capsys.readouterr().err
    assert left == Run.open(tmp_path / "run" / "calibrated").arch() and left.locations and not adaptive(left)
    assert found["after"]["measured_ms"] <= found["budget_ms"]
    assert (tmp_path / "run" / "model.onnx").read_text() == left.id, "the file is the result's, whatever was tried last"
    tries = 2 if how in ("measured", "file") else 0
    assert said.count("they are set for less") == tries and said.count("do not pay on") == 1
    assert (tmp_path / "run" / "thresholds-off.json").exists() is (how != "priced")
    if epochs:
        assert digest(Run.open(tmp_path / "run").weights()) == digest(Run.open(tmp_path / "run" / "trained").weights())
        assert found["training"]["used"] and found["training"]["adaptive"] is False
    else:
        assert found["training"] == {"epochs": 0, "adaptive": True, "used": False}


def test_what_was_switched_off_stays_so_after_a_kill(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once more, thresholds could be within the budget by chance, and a training begun without them be lost."""
    monkeypatch.setattr("nas.pruning.attempt.harmed", lambda job, before, after: False)
    how: dict[str, Any] = {"speedup": 1.6, "healing": Healing(1, batch_size=64, adaptive=True), **TOKENS}
    with (
        patch.object(Job, "measured", behind(Job.measured)),
        patch("nas.pruning.attempt.heal", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        prune_network(str(vit), "toy", tmp_path / "run", **how)
    found = prune_network(str(vit), "toy", tmp_path / "run", resume=True, **how)
    assert found["training"]["used"] and found["training"]["adaptive"] is False
    assert network_named(str(tmp_path / "run")).arch == Run.open(tmp_path / "run" / "calibrated").arch()


def test_thresholds_are_for_what_drops_patches(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def whole(*given: Any, **how: Any) -> Any:
        return prepare(*given, **{**how, "parts": ("heads", "neurons")})

    with patch("nas.pruning.job.prepare", whole):
        found = prune_network(str(vit), "toy", tmp_path / "run", speedup=1.6, healing=Healing(adaptive=True), **TOKENS)
    assert found["training"] == {"epochs": 0, "adaptive": True, "used": False}
    assert "drops no patches: there is nothing for thresholds to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "parts", "message"),
    [
        ("cpu-ort-int8-b1-t1", (*PARTS, "tokens"), "would keep other numbers of patches in int8"),
        ("cpu-ort-fp32-b8-t1", (*PARTS, "tokens"), "takes images one by one"),
        (
            "cpu-ort-fp32-b1-t1",
            ("heads", "merging"),
            "--adaptive is of patches that are dropped; add tokens to --parts",
        ),
    ],
)
def test_thresholds_where_none_can_be_are_refused_before_anything_is_done(
    target: str, parts: tuple[str, ...], message: str, vit: Path, tmp_path: Path
) -> None:
    how = {**HOW, "target": target, "parts": parts, "healing": Healing(adaptive=True)}
    with priced(Prices(Target.parse(target))), pytest.raises(InputError, match=message):
        prune_network(str(vit), "toy", tmp_path / "run", speedup=2, **how)
    assert not (tmp_path / "run").exists()
