"""`nas prune --max-drop`: the fastest network that holds an accuracy, found again after a kill; int8 is judged in int8."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import compress
from compress.prune import Pruned
from nas.data import Data
from nas.errors import BudgetError
from nas.evaluate import accuracy
from nas.export import export_onnx
from nas.networks import network_named
from nas.pruning import Healing, prune_network
from nas.pruning.files import quantised
from nas.pruning.floor import TRIES, Bracket
from nas.pruning.goal import Floor
from nas.pruning.job import Job, job_of
from nas.pruning.judge import judged
from nas.runs import Run, digest, load_weights, save_weights
from nas.runtimes import RUNTIMES
from nas.target import Target
from nas.train.retrain import load_network
from search_spaces import Arch, InputError
from search_spaces.blocks import MB4D, Head, Stem
from tests.nas.pruning_toy import ARCH, IMAGES, PARTS, Prices, priced, with_head
from tests.nas.toy import Toy, toy

HOW: dict[str, Any] = {"target": Prices().target.name, "images": 64, "parts": PARTS}
DENSE_MS = Prices().predict(ARCH).ms


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


@pytest.fixture(scope="module")
def floored(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("runs") / "floored"
    with priced():
        return prune_network(str(vit), "toy", out, max_drop=0.05, **HOW), out


def test_the_fastest_that_holds_is_what_is_left(floored: tuple[dict[str, Any], Path]) -> None:
    found, out = floored
    named = network_named(str(out))
    assert named.network is not None
    held = accuracy(named.network, toy(IMAGES), "val")
    assert found["val_acc"]["after"] == held >= found["val_acc"]["before"] - 0.05
    assert found["max_drop"] == 0.05 and found["budget_ms"] is None and found["speedup_measured"] > 1.2
    tries = found["tries"]
    holding, failing = ([one["limit"] for one in tries if one["holds"] is holds] for holds in (True, False))
    assert 1 < len(tries) <= TRIES and max(failing, default=0.0) < min(holding) < DENSE_MS
    best = next(one for one in tries if one["limit"] == min(holding))
    assert best["ms"] == pytest.approx(found["after"]["measured_ms"]) and best["acc"] == held
    assert [path.name for path in (out / "tries").iterdir() if path.is_dir()] == [str(tries.index(best))], (
        "the rest is removed"
    )


def test_a_killed_search_goes_on_with_the_next_try(
    floored: tuple[dict[str, Any], Path], vit: Path, tmp_path: Path
) -> None:
    append, done = Run.append, []

    def killed(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        done.append(record)
        if len(done) == 3:
            raise KeyboardInterrupt

    how = {"max_drop": 0.05, **HOW}
    with patch.object(Run, "append", killed), pytest.raises(KeyboardInterrupt):
        prune_network(str(vit), "toy", tmp_path / "run", **how)
    assert Run.open(tmp_path / "run" / "tries").records() == done
    found = prune_network(str(vit), "toy", tmp_path / "run", resume=True, **how)
    whole, out = floored
    assert found["tries"] == whole["tries"] and found["after"] == whole["after"]
    assert digest(Run.open(tmp_path / "run").weights()) == digest(Run.open(out).weights())


def test_training_makes_networks_hold_that_did_not(
    floored: tuple[dict[str, Any], Path], vit: Path, tmp_path: Path
) -> None:
    found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.05, healing=Healing(2, batch_size=32), **HOW)
    trained = [one for one in found["tries"] if one["trained"]]
    assert trained and any(one["holds"] for one in trained)
    assert found["after"]["measured_ms"] < floored[0]["after"]["measured_ms"]
    assert found["val_acc"]["after"] >= found["val_acc"]["before"] - 0.05 and found["training"]["epochs"] == 2


def test_where_nothing_holds_the_network_stays(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def judge(job: Job, found: Pruned) -> float:
        return 0.9 if found.arch == ARCH else 0.1

    with patch("nas.pruning.floor.val_accuracy", judge), patch("nas.pruning.val_accuracy", judge):
        found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.05, **HOW)
    assert network_named(str(tmp_path / "run")).arch == ARCH and found["speedup_measured"] == 1
    assert digest(Run.open(tmp_path / "run").weights()) == digest(load_weights(vit))
    assert 1 < len(found["tries"]) <= TRIES and not any(one["holds"] for one in found["tries"])
    assert "no try loses at most 0.05 of accuracy: the network stays as it is" in capsys.readouterr().err


def test_a_budget_and_an_accuracy_must_both_hold(vit: Path, tmp_path: Path) -> None:
    found = prune_network(str(vit), "toy", tmp_path / "both", speedup=1.3, max_drop=0.5, **HOW)
    assert found["after"]["measured_median_ms"] <= found["budget_ms"] and found["val_acc"]["after"] > 0.4
    with pytest.raises(
        BudgetError, match=r"accuracy on search-validation falls from 0\.\d+ to 0\.\d+, by more than 0;"
    ):
        prune_network(str(vit), "toy", tmp_path / "neither", budget_ms=0.22, max_drop=0.0, **HOW)


def test_a_bracket_closes_from_both_ends() -> None:
    bracket = Bracket(1.0, 16.0)
    for limit, ms, holds in ((4.0, 3.9, True), (2.0, 1.9, False), (2.8, 2.7, True), (2.3, 2.69, False)):
        assert not bracket.done
        bracket = bracket.after({"limit": limit, "ms": ms, "holds": holds, "trained": False})
    assert (bracket.low, bracket.high, bracket.best, bracket.tries) == (2.69, 2.7, 2, 4) and bracket.done
    trained = Bracket(1.0, 16.0)
    for _ in range(4):
        assert not trained.done
        trained = trained.after({"limit": 2.0, "ms": 2.0, "holds": False, "trained": True})
    assert trained.done


def test_accuracies_are_compared_without_their_rounding() -> None:
    assert Floor(0.1, 0.3).holds(0.3 - 0.1) and Floor(0.0, 0.7).holds(0.7) and not Floor(0.01, 0.7).holds(0.68)


INT8 = Prices(target=Target("cpu", "ort", "int8", 1, 1))


def test_an_int8_target_is_judged_by_its_file(vit: Path, tmp_path: Path) -> None:
    small = toy(64)
    with priced(INT8, small):
        job = job_of(str(vit), "toy", None, INT8.target.name, None, 64, PARTS, 0, False)
        path = export_onnx(job.network, ARCH.example(1), tmp_path / "a.onnx")
        session = RUNTIMES["ort"].from_file(quantised(job, ARCH, path, tmp_path / "b.onnx"), INT8.target)
        images, labels = small.tensors("val").tensors
        wanted = float((session.run(images.numpy()).argmax(1) == labels.numpy()).mean())
        with patch("nas.pruning.judge.best_classes", side_effect=AssertionError("judged in float")):
            assert judged(job, job.network, "val") == wanted > 0.5
            found = prune_network(
                str(vit), "toy", tmp_path / "run", speedup=1.3, max_drop=0.9, **{**HOW, "target": INT8.target.name}
            )
    assert found["val_acc"]["before"] == wanted and found["before"]["acc"] is not None


class Wrong(Toy):
    """The toy with one label too many."""

    def labels(self, split: Any) -> Any:
        found = super().labels(split).copy()
        found[3] = 4 if split == "val" else found[3]
        return found


class Unlabelled(Toy):
    def labels(self, split: Any) -> Any:
        return super().labels(split) % 3


def of(kind: type[Toy], count: int = 256) -> Data:
    return kind("toy", ("a", "b", "c", "d"), 32, (0.0,) * 3, (1.0,) * 3, count)


def saved(path: Path, weights: dict[str, torch.Tensor], arch: Any = ARCH) -> Path:
    save_weights(path, weights, arch)
    return path


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        (
            of(Wrong),
            {"speedup": 2},
            "toy has 1 labels in val that are none of its classes 0 to 3, such as 4; mend them",
        ),
        (of(Toy, 0), {"speedup": 2}, "toy has no training images to calibrate on"),
        (toy(), {"max_drop": -0.1}, "--max-drop is a share of the images from 0 to below 1"),
        (toy(), {"max_drop": float("nan")}, "--max-drop is a share of the images from 0 to below 1"),
        (toy(), {}, "--max-drop X"),
        (toy(), {"speedup": 2, "budget_ms": 1, "max_drop": 0.1}, "either --budget-ms MS or --speedup X"),
    ],
)
def test_bad_input_is_one_line(data: Data, how: dict[str, Any], message: str, vit: Path, tmp_path: Path) -> None:
    with priced(data=data), pytest.raises(InputError, match=message) as found:
        prune_network(str(vit), "toy", tmp_path / "run", **how, **HOW)
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_are_named(vit: Path, tmp_path: Path) -> None:
    weights = load_weights(vit)
    name = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    weights[name][0, :2] = torch.tensor([float("nan"), float("inf")])
    path = saved(tmp_path / "nan.safetensors", weights)
    with pytest.raises(InputError, match=rf"{name} holds NaN or infinity"):
        prune_network(str(path), "toy", tmp_path / "run", speedup=2, **HOW)
    network = ARCH.build()
    network.load_state_dict(weights)
    with pytest.raises(InputError, match=rf"2 of the \d+ values of the network's {name} are NaN or infinite"):
        compress.prune(network, compress.Macs(), 1.0, [toy(8).tensors("train").tensors[0]])


def test_a_network_without_attention_is_refused(tmp_path: Path) -> None:
    arch = Arch(32, 3, (Stem(16), MB4D(), Head(4)))
    path = saved(tmp_path / "conv.safetensors", dict(arch.build().state_dict()), arch)
    with pytest.raises(InputError, match="cannot be pruned: it takes a plain ViT, whose blocks of attention"):
        prune_network(str(path), "toy", tmp_path / "run", speedup=2, **HOW)


def test_classes_without_images_cannot_be_fitted(vit: Path, tmp_path: Path) -> None:
    nine = ARCH.with_classes(9)
    path = saved(tmp_path / "nine.safetensors", with_head(load_weights(vit), nine), nine)
    message = "cannot be fitted: 1 of its 4 classes, such as 'd', have no training images"
    with priced(data=of(Unlabelled)), pytest.raises(InputError, match=message):
        prune_network(str(path), "toy", tmp_path / "run", speedup=2, **HOW)


def test_a_table_that_is_not_good_is_said(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prices in (Prices(why="the noise floor is 9%"), Prices()):
        with priced(prices):
            job_of(str(vit), "toy", None, prices.target.name, None, 64, PARTS, 0, False)
    assert capsys.readouterr().err.count("prices is not to be relied on: the noise floor is 9%") == 1


def test_a_table_and_the_name_of_its_target_are_one(vit: Path, tmp_path: Path) -> None:
    table = patch("nas.pruning.job.LatencyTable.load", lambda path: Prices(path=Path("given")))
    how = {**HOW, "speedup": 2, "table": Path("given.csv"), "target": "cpu-ort-fp32-b1-t1"}
    with table, priced():
        found = prune_network(str(vit), "toy", tmp_path / "run", **how)
    assert found["speedup_measured"] >= 2 and len(found["targets"]) == 1


@pytest.mark.parametrize("other", ["cpu-ort-int8-b1-t1", "cpu-ort-fp32-b8-t1", "cpu-eager-fp32-b1-t1"])
def test_a_table_of_another_target_is_refused(other: str, vit: Path, tmp_path: Path) -> None:
    table = patch("nas.pruning.job.LatencyTable.load", lambda path: Prices(Target.parse(other)))
    how = {**HOW, "speedup": 2, "table": Path("given.csv"), "target": "cpu-ort-fp32-b1-t1"}
    message = f"given.csv is a table of {other}, not of cpu-ort-fp32-b1-t1; give --target cpu-ort-fp32-b1-t1 alone"
    with table, priced(), pytest.raises(InputError, match=message) as found:
        prune_network(str(vit), "toy", tmp_path / "run", **how)
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()


def test_what_takes_no_less_time_is_not_used(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the table it is faster, and on the device it is not."""
    dense = Prices().timed(ARCH)
    with priced(), patch.object(Prices, "timed", lambda self, arch: dense):
        found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.05, **HOW)
    assert "what is left takes no less time than the network as it is, which stays" in capsys.readouterr().err
    assert network_named(str(tmp_path / "run")).arch == ARCH and found["speedup_measured"] == 1
    assert any(one["holds"] for one in found["tries"])


TOKENS = {**HOW, "parts": ("heads", "tokens")}


def test_thresholds_that_do_nothing_are_no_training(vit: Path, tmp_path: Path) -> None:
    """A try for which there is nothing to do is not one of the few that are trained."""
    with patch("nas.pruning.heal.solved", return_value=None):
        found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.0, healing=Healing(adaptive=True), **TOKENS)
    assert not any(one["trained"] for one in found["tries"]) and found["training"] is None


@pytest.mark.parametrize("slower", [0.0, 1.0])
def test_thresholds_of_the_fastest_are_switched_off_where_they_do_not_pay(
    slower: float, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Job.measured

    def late(job: Job, archs: list[Arch]) -> list[dict[str, float]]:
        found = measured(job, archs)
        for arch, own in zip(archs, found, strict=True):
            if len(found) == 3 and arch != arch.keeping(
                adaptive=False
            ):  # less than the same with fixed numbers, or more
                own["measured_median_ms"] = 0.9 * found[-2]["measured_median_ms"] + slower
        return found

    with (
        patch.object(Job, "measured", late),
        patch("nas.pruning.floor.val_accuracy", lambda job, found: 0.9),
        patch("nas.pruning.val_accuracy", lambda job, found: 0.9),
    ):
        found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.1, healing=Healing(adaptive=True), **TOKENS)
    left = network_named(str(tmp_path / "run")).arch
    assert left.locations and (left == left.keeping(adaptive=False)) is (slower > 0)
    assert ("they do not pay on" in capsys.readouterr().err) is (slower > 0)
    assert found["speedup_measured"] > 1


def test_the_last_try_is_not_trained_to_its_harm(vit: Path, tmp_path: Path) -> None:
    harmful = Healing(1, batch_size=32, lr=0.3)
    found = prune_network(str(vit), "toy", tmp_path / "run", max_drop=0.05, healing=harmful, **HOW)
    assert found["training"]["used"] is False and found["val_acc"]["after"] >= found["val_acc"]["before"] - 0.05
    folder = next(path for path in (tmp_path / "run" / "tries").iterdir() if path.is_dir())
    assert digest(load_network(folder / "calibrated", "prune")[0].state_dict()) == digest(
        Run.open(tmp_path / "run").weights()
    )
