"""Training inside `nas prune`: it heals, goes on after a kill, and follows features or thresholds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from compress import feature_distance
from compress.prune import Pruned, prepare
from compress.slicing import size_of
from nas.evaluate import accuracy
from nas.export import Checked
from nas.launch import retrain_network
from nas.networks import network_named
from nas.pruning import Healing, prune_network
from nas.pruning.files import Delivered, Files
from nas.pruning.heal import heal, healer, usual_rate
from nas.pruning.job import Job, job_of
from nas.pruning.outcome import _blocks
from nas.runs import Run, digest, load_weights, save_weights
from nas.target import Target
from nas.train import loop
from nas.train.loop import Recipe
from nas.train.retrain import fresh_network, load_network
from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, TokenPrune
from tests.nas.pruning_toy import (
    ARCH,
    ENCODER,
    FIXED,
    IMAGES,
    PARTS,
    THRESHOLDS,
    Prices,
    priced,
    trained_vit,
    with_head,
)
from tests.nas.toy import toy

HEALING = Healing(epochs=2, batch_size=32)
HOW: dict[str, Any] = {"target": Prices().target.name, "images": 64, "parts": PARTS}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_vit(tmp_path_factory.mktemp("vit"))


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
    assert found["after"]["measured_ms"] <= found["budget_ms"] and found["fitted_head"] is None


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
    assert recipe == {**vars(wanted), "sides": []}


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
            times[1]["measured_ms"] *= 1.05
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


LATE = 1.01 * Prices().predict(ARCH).ms / 1.6  # milliseconds, just over a budget of a speed-up of 1.6


def adaptive(arch: Arch) -> bool:
    return arch != arch.keeping(adaptive=False)


def behind(measured: Any) -> Any:
    """`Job.measured`, where networks with thresholds take `LATE`, whatever they keep."""

    def found(job: Job, archs: list[Arch]) -> list[dict[str, float]]:
        times = measured(job, archs)
        return [{**own, "measured_ms": LATE} if adaptive(arch) else own for arch, own in zip(archs, times, strict=True)]

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

    def exported(files: Files, arch: Arch, weights: dict[str, torch.Tensor], ms: float | None = None) -> Delivered:
        path = files.out / "model.onnx"
        path.write_text(arch.id)
        return Delivered(path, Checked(0.0, 1.0, 1), path, LATE if how == "file" and adaptive(arch) else 1e-3)

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
