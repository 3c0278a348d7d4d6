"""Training inside `nas prune`: it heals, goes on after a kill, and follows features."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from compress import feature_distance
from compress.slicing import size_of
from nas.evaluate import accuracy
from nas.launch.retrain import retrain_network
from nas.networks import network_named
from nas.pruning import Healing, prune_network
from nas.pruning.heal import healer, usual_rate
from nas.pruning.job import Job, job_of
from nas.pruning.outcome import _blocks
from nas.runs import Run, digest, load_weights, save_weights
from nas.train import loop
from nas.train.loop import Recipe
from nas.train.retrain import fresh_network, load_network
from search_spaces import InputError, zoo
from search_spaces.blocks import MB3D
from tests.nas.pruning_toy import (
    ARCH,
    ENCODER,
    HOW,
    IMAGES,
    PARTS,
    Prices,
    priced,
    with_head,
)
from tests.nas.toy import toy

HEALING = Healing(epochs=2, batch_size=32)


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


@pytest.fixture(scope="module")
def healed(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("runs") / "healed"
    with priced():
        return prune_network(str(vit), "toy", out, speedup=2.5, healing=HEALING, **HOW), out


def test_training_heals_what_calibration_lost(healed: tuple[dict[str, Any], Path], vit: Path) -> None:
    found, out = healed
    calibrated, arch, _ = load_network(out / "calibrated", "prune")
    trained, same, run = load_network(out / "trained")
    assert arch == same == Run.open(out).arch() and digest(Run.open(out).weights()) == digest(trained.state_dict())
    lost, left = (accuracy(network, toy(IMAGES), "val") for network in (calibrated, trained))
    assert left > lost + 0.02 and found["training"]["val_acc"] == left and found["training"]["used"]
    assert found["after"]["acc"] == accuracy(trained, toy(IMAGES), "test")
    taught = run.config["teacher"]
    assert taught["weights"] == digest(load_weights(vit)), "the dense network teaches"
    assert taught["weight"] / (1 - taught["weight"]) == pytest.approx(0.5), "AS-ViT's, beside the labels' of 1"
    assert taught["temperature"] == 1.0
    assert run.config["start"] == digest(calibrated.state_dict())
    assert found["training"]["lr"] == run.config["recipe"]["lr"] == usual_rate(ARCH) == 0.032 / 32
    assert found["after"]["measured_median_ms"] <= found["budget_ms"] and found["fitted_head"] is None


@pytest.mark.parametrize("source", ["vit", "encoder"])
def test_a_training_that_harms_is_not_used(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"speedup": 1.5, "healing": Healing(1, batch_size=128, lr=1.0), **HOW}
    found = prune_network(str(request.getfixturevalue(source)), "toy", tmp_path / "run", **how)
    calibrated, _, _ = load_network(tmp_path / "run" / "calibrated", "prune")
    assert digest(Run.open(tmp_path / "run").weights()) == digest(calibrated.state_dict())
    assert found["training"]["used"] is False and found["training"]["epochs"] == 1
    assert "training made it worse on search-validation" in capsys.readouterr().err


def test_a_killed_training_goes_on_and_calibrates_no_more(
    healed: tuple[dict[str, Any], Path], vit: Path, tmp_path: Path
) -> None:
    save = loop._save

    def killed(path: Path, parts: Any, epoch: int) -> None:
        save(path, parts, epoch)
        raise KeyboardInterrupt

    how = {"speedup": 2.5, "healing": HEALING, **HOW}
    with patch("nas.train.loop._save", killed), pytest.raises(KeyboardInterrupt):
        prune_network(str(vit), "toy", tmp_path / "run", **how)
    assert (tmp_path / "run" / "trained" / "checkpoint.pt").exists() and Run.open(tmp_path / "run").summary is None
    with patch("nas.pruning.job.prepare", side_effect=AssertionError("calibrated again")):
        found = prune_network(str(vit), "toy", tmp_path / "run", resume=True, **how)
    whole, out = healed
    assert digest(Run.open(tmp_path / "run").weights()) == digest(Run.open(out).weights())
    assert found["training"] == whole["training"] and found["after"] == whole["after"]
    assert found["surrogate"] == whole["surrogate"] and whole["surrogate"]["promised"] > 0
    with pytest.raises(InputError, match="holds a run with healing"):
        prune_network(str(vit), "toy", out, resume=True, **{**how, "healing": replace(HEALING, lr=1e-3)})


def test_each_setting_of_the_training_reaches_its_run(vit: Path, tmp_path: Path) -> None:
    given = Healing(1, 64, 1e-4, 0.1, 0.9, 0.8, 1.0)
    prune_network(str(vit), "toy", tmp_path / "run", speedup=1.5, healing=given, **HOW, seed=3)
    recipe = Run.open(tmp_path / "run" / "trained").config["recipe"]
    wanted = Recipe(1, 64, 1e-4, 0.1, smoothing=0.0, seed=3, ema=0.9, mixup=0.8, cutmix=1.0)
    assert recipe == {**wanted.described(), "sides": []}


def test_what_is_left_is_retrained_at_length_by_the_other_command(
    healed: tuple[dict[str, Any], Path], vit: Path, tmp_path: Path
) -> None:
    _, out = healed
    found = retrain_network(str(out), "toy", Recipe(1, 32, 1e-4), tmp_path / "long", teacher=str(out / "trained"))
    assert found["test_acc"] > 0.5 and load_network(tmp_path / "long")[1] == network_named(str(out)).arch


@pytest.fixture(scope="module")
def encoder(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_weights(path, with_head(load_weights(vit), ENCODER), ENCODER)
    return path


def test_an_encoder_follows_the_features_of_the_dense_one(encoder: Path, tmp_path: Path) -> None:
    how = {"speedup": 2.5, "healing": HEALING, **HOW}
    found = prune_network(str(encoder), "toy", tmp_path / "run", **how)
    images = torch.cat([images for images, _ in toy(IMAGES).loader("val", 250)])
    dense = network_named(str(encoder)).network
    assert dense is not None and found["before"]["acc"] is None and found["after"]["acc"] is None
    lost, left = (
        float(feature_distance(load_network(tmp_path / "run" / name, kind)[0](images), dense(images)).detach())
        for name, kind in (("calibrated", "prune"), ("trained", "retrain"))
    )
    assert left < lost and found["training"]["val_distance"] == pytest.approx(left, rel=0.1)
    assert (tmp_path / "run" / "report.html").is_file()
    assert found["before"]["distance"] == 0 < found["after"]["distance"] == pytest.approx(left, rel=0.3)
    with pytest.raises(InputError, match="--max-drop is of accuracy"):
        prune_network(str(encoder), "toy", tmp_path / "floor", max_drop=0.1, **HOW)


@pytest.fixture
def job(vit: Path) -> Job:
    return job_of(str(vit), "toy", None, Prices().target.name, None, 64, PARTS, 0, False)


def test_torchrun_is_refused(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="nas prune is of one process"):
        prune_network(str(vit), "toy", tmp_path / "run", speedup=2, **HOW)
    assert not (tmp_path / "run").exists()


def test_a_block_whose_time_does_not_follow_its_macs_is_named(
    vit: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ARCH.blocks[3]
    assert isinstance(spec, MB3D)
    fewer = replace(spec, ratio=spec.ratio / 2)
    arch = replace(ARCH, blocks=(*ARCH.blocks[:3], fewer, *ARCH.blocks[4:]))
    found = replace(job.dense(), arch=arch, sizes={3: size_of(fewer, 32)})
    assert [row["slow"] for row in _blocks(job, found)] == [False] * 3
    with patch.object(Prices, "block_ms", lambda self, spec, state: 1.0):
        rows = _blocks(job, found)
    assert [row["slow"] for row in rows] == [True, False, False] and rows[0]["macs_share"] < 1 == rows[0]["ms_share"]
    state = ARCH.states[3]
    assert rows[0]["macs"] == [spec.macs(state), fewer.macs(state)] and rows[0]["ms"] == [1.0, 1.0]
    assert (
        rows[0]["params"] == [spec.params(state), fewer.params(state)] and rows[1]["params"] == [spec.params(state)] * 2
    )
    assert capsys.readouterr().err.count("MACs fell to") == 1


def test_rivals_are_trained_as_the_result_is(job: Job, tmp_path: Path) -> None:
    assert healer(job, tmp_path, Healing()) is None
    train = healer(job, tmp_path, HEALING)
    assert train is not None
    smaller = replace(ARCH, blocks=(*ARCH.blocks[:4], ARCH.blocks[-1]))
    weights = train("uniform", smaller, dict(fresh_network(smaller, 0).state_dict()))
    assert digest(weights) == digest(load_network(tmp_path / "uniform")[0].state_dict())
    assert Run.open(tmp_path / "uniform").config["recipe"]["epochs"] == HEALING.epochs


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"healing": Healing(1, batch_size=1000)}, "has 512 training images, fewer than a batch of 1000"),
        ({"healing": Healing(1, lr=-1.0)}, "must be positive"),
        ({"healing": Healing(1, mixup=-1.0)}, "alpha of mixup must be at least 0"),
        ({"out": "full"}, "already holds a run; add --resume"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_done(
    how: dict[str, Any], message: str, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.pruning.job.find_tables", lambda *given: pytest.fail("measured"))
    Run.start(tmp_path / "full", "prune", {}, resume=False)
    rest = {name: value for name, value in how.items() if name != "out"}
    with pytest.raises(InputError, match=message) as found:
        prune_network(str(vit), "toy", tmp_path / how.get("out", "run"), speedup=2, **rest, **HOW)
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "--train-epochs must be at least 0"),
        ({"lr": 1e-3}, "--lr is of the training; add --train-epochs N"),
        ({"batch_size": 8}, "--batch-size is of the training; add --train-epochs N"),
    ],
)
def test_settings_without_a_training_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Healing(**settings)


def test_the_usual_rate_goes_down_with_the_width() -> None:
    rates = [usual_rate(zoo.arch(f"deit_{size}_patch16_224")) for size in ("tiny", "small", "base")]
    assert rates == pytest.approx([1.67e-4, 8.3e-5, 4.2e-5], rel=0.01)
