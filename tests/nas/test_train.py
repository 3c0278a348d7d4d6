"""Training: it learns, resumes to the same weights after a kill, and refuses what does not fit."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from nas.cli.main import app
from nas.data import DATASETS, Data
from nas.evaluate import accuracy, calibration_batches, correct
from nas.runs import Run, load_weights
from nas.train.loop import Recipe, fit
from nas.train.retrain import Teacher, fresh_network, load_network, retrain, supervised
from nas.train.supernet import LARGEST, load_supernet, new_supernet, sandwich, space_named, train_supernet
from search_spaces import SPACES, Arch, InputError
from search_spaces.blocks import Embed, Head, Stem
from search_spaces.states import Map
from tests.nas.toy import toy, toy_mobile_former, toy_space
from tests.search_spaces.test_token_prune import hybrid, vit

RECIPE = Recipe(epochs=3, batch_size=32, lr=5e-3)
SPACE = toy_space()


@pytest.fixture(autouse=True)
def toy_is_known() -> object:
    with patch.dict(SPACES, {"hybrid_toy": toy_space}):
        yield


def test_so_many_images_are_drawn_as_are_asked_for() -> None:
    data = toy(1024)
    few, more = (calibration_batches(data, 0, count) for count in (300, 512))
    assert [len(images) for images, _ in few] == [len(labels) for _, labels in few] == [256, 44]
    assert torch.equal(few[1][0], more[1][0][:44]) and torch.equal(few[1][1], more[1][1][:44])
    assert [len(images) for images, _ in calibration_batches(data, 0, 40)] == [40]
    assert sum(len(images) for images, _ in calibration_batches(toy(300), 0, 4096)) == 256, "whole batches alone"


class Short(Recipe):
    """Two batches of the last epoch."""

    def batches(self, data: Data, epoch: int) -> list[tuple[int, int]]:
        return super().batches(data, epoch)[: 2 if epoch == self.epochs - 1 else None]


def test_a_recipe_may_end_an_epoch_early(tmp_path: Path) -> None:
    data, recipe, seen = toy(160), Short(epochs=2, batch_size=32), list[tuple[int, Tensor]]()
    assert recipe.steps(data) == 5 + 2

    def noted(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        seen.append((step, images))
        yield model(images).mean()

    for number, one in enumerate((recipe, Recipe(epochs=2, batch_size=32))):
        fit(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), noted, data, one, tmp_path / f"{number}.pt", "short"
        )
    assert [step for step, _ in seen] == [*range(7), *range(10)]
    assert all(torch.equal(own, whole) for (_, own), (_, whole) in zip(seen[:7], seen[7:14], strict=True))


def test_the_supernet_learns_and_so_do_its_extremes(tmp_path: Path) -> None:
    summary = train_supernet(SPACE, toy(), replace(RECIPE, epochs=6), tmp_path / "s")
    assert summary["largest_acc"] > 0.7
    assert summary["smallest_acc"] > 0.4
    supernet, run = load_supernet(tmp_path / "s")
    network = supernet.extract(SPACE.largest, supernet.recalibrate(SPACE.largest, calibration_batches(toy(), 0)))
    assert accuracy(network, toy(), "val") == pytest.approx(summary["largest_acc"])
    assert run.config["space"] == "hybrid_toy"
    assert not (tmp_path / "s" / "checkpoint.pt").exists()


def test_a_supernet_starts_from_the_largest_network_and_then_follows_its_scores_alone(tmp_path: Path) -> None:
    still = replace(RECIPE, epochs=1, lr=1e-9, weight_decay=0.0)
    with patch("nas.train.supernet.replace", lambda recipe, epochs: replace(RECIPE, epochs=epochs)):
        summary = train_supernet(SPACE, toy(), still, tmp_path / "s", largest_epochs=6)
    largest, arch, run = load_network(tmp_path / "s" / LARGEST)
    assert arch == SPACE.largest and run.config["recipe"]["epochs"] == 6
    assert (
        summary["largest_acc"] == pytest.approx(accuracy(largest, toy(), "val"), abs=0.05)
        and summary["largest_acc"] > 0.7
    )
    supernet, run = load_supernet(tmp_path / "s")
    assert run.config["largest_epochs"] == 6
    for name, weight in supernet.weights(arch).items():
        torch.testing.assert_close(weight.detach(), largest.state_dict()[name], rtol=0, atol=1e-5)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(4, (8,))
    ours, others = (
        [
            [
                float(loss.detach())
                for loss in sandwich(SPACE, RECIPE, 9, trained=trained)(supernet.train(), images, given, 0)
            ]
            for given in (labels, 3 - labels)
        ]
        for trained in (True, False)
    )
    assert ours[0][0] != ours[1][0] and ours[0][1:] == ours[1][1:], "only the largest network learns the labels"
    assert others[0][1:] != others[1][1:]
    with pytest.raises(InputError, match="at least 0"):
        train_supernet(SPACE, toy(), still, tmp_path / "t", largest_epochs=-1)


def test_retraining_starts_from_given_weights_and_follows_the_teacher(tmp_path: Path) -> None:
    arch, data = SPACE.smallest, toy()
    teacher = fresh_network(SPACE.largest, 1)
    fit(teacher, supervised(RECIPE, None), data, replace(RECIPE, epochs=6), tmp_path / "t.pt", "teacher")
    still = Recipe(epochs=1, batch_size=32, lr=1e-9, weight_decay=0.0)
    start = fresh_network(arch, 5).state_dict()
    retrain(arch, data, still, tmp_path / "still", start=start)
    kept = load_weights(tmp_path / "still" / "weights.safetensors")
    for name, tensor in start.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-5)
    images = data.tensors("val").tensors[0]

    def distance(folder: str, guide: Teacher | None) -> float:
        retrain(arch, data, RECIPE, tmp_path / folder, start=start, teacher=guide)
        network, loaded, run = load_network(tmp_path / folder)
        assert loaded == arch
        assert run.config["teacher"] == (None if guide is None else guide.described())
        with torch.no_grad():
            return float((network(images).softmax(1) - teacher.eval()(images).softmax(1)).abs().mean())

    assert distance("with", Teacher(teacher, 4, weight=1.0)) < distance("without", None)


def test_remembered_scores_are_the_teachers_own(tmp_path: Path) -> None:
    """Two students of one teacher see the same batches; looking its scores up must change nothing."""
    network, store = fresh_network(SPACE.largest, 1).eval(), {}
    for name, teacher in (
        ("asked", Teacher(network, 4)),
        ("stored", Teacher(network, 4, remembered=store)),
        ("looked_up", Teacher(network, 4, remembered=store)),
    ):
        retrain(SPACE.smallest, toy(64), replace(RECIPE, epochs=1), tmp_path / name, teacher=teacher)
    assert len(store) == 2
    wanted = load_weights(tmp_path / "asked" / "weights.safetensors")
    for name in ("stored", "looked_up"):
        for entry, tensor in load_weights(tmp_path / name / "weights.safetensors").items():
            assert torch.equal(tensor, wanted[entry]), entry


SCRIPT = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    from nas.train.supernet import train_supernet
    from nas.train.retrain import retrain
    from nas.train.loop import Recipe
    from tests.nas.toy import toy, toy_space
    torch.set_num_threads(1)
    recipe = Recipe(epochs=4, batch_size=32, lr=5e-3, ema=float(sys.argv[1]))
    if recipe.ema:
        recipe = replace(recipe, opt="muon")
        retrain(toy_space().largest, toy(), recipe, Path(sys.argv[2]), resume=True)
    else:
        train_supernet(toy_space(), toy(), recipe, Path(sys.argv[2]), largest_epochs=int(sys.argv[3]), resume=True)
"""


@pytest.mark.parametrize(
    ("ema", "largest", "file"),
    [(0.0, 0, "supernet.safetensors"), (0.0, 3, "supernet.safetensors"), (0.9, 0, "weights.safetensors")],
)
def test_kill_nine_and_resume_ends_with_the_same_weights(ema: float, largest: int, file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(ema)]
    subprocess.run([*command, str(tmp_path / "whole"), str(largest)], check=True, timeout=100)
    process = subprocess.Popen([*command, str(tmp_path / "killed"), str(largest)])
    while not (tmp_path / "killed" / ("largest" if largest else ".") / "checkpoint.pt").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    subprocess.run([*command, str(tmp_path / "killed"), str(largest)], check=True, timeout=100)
    whole, resumed = (load_weights(tmp_path / name / file) for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@torch.no_grad()
def averaged(states: list[dict[str, torch.Tensor]], most: float) -> dict[str, torch.Tensor]:
    """The mean of the states after each step, by the formula: the decay rises from 0 to `most`."""
    mean = dict(states[0])
    for step, state in enumerate(states[1:], 2):
        decay = min(most, 1 - step ** (-2 / 3))
        for name, tensor in state.items():
            mean[name] = decay * mean[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    return mean


def test_averaged_weights_are_those_of_the_formula(tmp_path: Path) -> None:
    """Parameters and BN statistics; a training without them is the one that is averaged."""
    recipe, seen = replace(RECIPE, epochs=2), []

    def watched(
        model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, step: int
    ) -> Iterator[torch.Tensor]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        yield from supervised(recipe, None)(model, images, labels, step)

    last, mean = fresh_network(SPACE.smallest, 0), fresh_network(SPACE.smallest, 0)
    fit(last, watched, toy(), recipe, tmp_path / "last.pt", "last")
    assert torch.load(tmp_path / "last.pt", weights_only=True).keys() == {"epoch", "model", "optimizer"}
    fit(mean, supervised(recipe, None), toy(), replace(recipe, ema=0.8), tmp_path / "mean.pt", "mean")
    found, wanted = mean.state_dict(), averaged([*seen[1:], last.state_dict()], 0.8)
    assert any(name.endswith("running_var") for name in wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        assert name.endswith("num_batches_tracked") or not torch.equal(tensor, last.state_dict()[name]), name


class Steep(nn.Module):
    """A weight with a gentle gradient beside a threshold with a steep one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.threshold = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))


def test_steep_gradients_of_thresholds_do_not_shrink_the_others(tmp_path: Path) -> None:
    model, recipe = Steep(), Recipe(epochs=1, batch_size=128)

    def losses(given: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        yield 0.1 * model.weight.sum() + 1000 * model.threshold

    fit(model, losses, toy(), recipe, tmp_path / "c.pt", "test", {"threshold": 1e-3})
    assert model.weight.grad is not None and model.threshold.grad is not None
    torch.testing.assert_close(model.weight.grad, torch.full((2,), 0.1))
    fit(model, losses, toy(), recipe, tmp_path / "together.pt", "test")
    assert float(model.weight.grad.max()) < 1e-3


def test_a_retrained_network_has_the_averaged_weights(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, ema=0.8)
    network = fresh_network(SPACE.smallest, recipe.seed)
    fit(network, supervised(recipe, None), toy(64), recipe, tmp_path / "c.pt", "x")
    summary = retrain(SPACE.smallest, toy(64), recipe, tmp_path / "r")
    for name, tensor in load_network(tmp_path / "r")[0].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    assert summary["val_acc"] == accuracy(network, toy(64), "val")


def retrained(folder: Path, out: str, *flags: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and weights of `nas retrain` of the smallest network after two steps; raises what the command raises."""
    (folder / "a.json").write_text(SPACE.smallest.to_json())
    words = ["retrain", str(folder / "a.json"), "--data", "toy", "--epochs", "1", "--batch-size", "32"]
    with patch.dict(DATASETS, {"toy": lambda path, image_size, seed: toy(64)}):
        found = CliRunner().invoke(app, [*words, "--out", str(folder / out), *flags])
    if found.exception is not None:
        raise found.exception
    return Run.open(folder / out).config, load_weights(folder / out / "weights.safetensors")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run to distil from, `teacher`, and a student of it, `usual`, trained without any flag."""
    folder = tmp_path_factory.mktemp("taught")
    run = Run.start(folder / "teacher", "retrain", {}, resume=False)
    run.save_network(SPACE.largest, fresh_network(SPACE.largest, 1).state_dict())
    retrained(folder, "usual", "--teacher", str(folder / "teacher"))
    return folder


@pytest.mark.parametrize(
    ("flag", "value", "part", "name"),
    [
        ("--ema", 0.9, "recipe", "ema"),
        ("--label-smoothing", 0.3, "recipe", "smoothing"),
        ("--weight-decay", 0.5, "recipe", "weight_decay"),
        ("--mixup", 0.8, "recipe", "mixup"),
        ("--cutmix", 1.0, "recipe", "cutmix"),
        ("--teacher-weight", 0.9, "teacher", "weight"),
        ("--temperature", 5.0, "teacher", "temperature"),
        ("--opt", "muon", "recipe", "opt"),
    ],
)
def test_each_flag_changes_its_part_of_the_training(
    flag: str, value: float | str, part: str, name: str, taught: Path, tmp_path: Path
) -> None:
    usual = Run.open(taught / "usual")
    config, weights = retrained(tmp_path, "out", "--teacher", str(taught / "teacher"), flag, str(value))
    assert config == {**usual.config, part: {**usual.config[part], name: value}} != usual.config
    assert not all(torch.equal(tensor, weights[entry]) for entry, tensor in usual.weights().items())


def test_sides_are_kept_in_the_run_and_it_can_be_resumed(taught: Path, tmp_path: Path) -> None:
    usual = Run.open(taught / "usual")
    flags = ("--teacher", str(taught / "teacher"), "--sides", "32,64")
    config, weights = retrained(tmp_path, "out", *flags)
    assert config == {**usual.config, "recipe": {**usual.config["recipe"], "sides": [32, 64]}}
    assert not all(torch.equal(tensor, weights[entry]) for entry, tensor in usual.weights().items())
    (tmp_path / "out" / "summary.json").unlink()
    again, resumed = retrained(tmp_path, "out", *flags, "--resume")
    assert again == config and all(torch.equal(tensor, resumed[entry]) for entry, tensor in weights.items())
    with pytest.raises(InputError, match="holds a run with recipe"):
        retrained(tmp_path, "out", *flags[:2], "--sides", "32,48", "--resume")


def test_without_flags_the_training_is_that_of_the_defaults(taught: Path, tmp_path: Path) -> None:
    defaults = ("--ema", "0", "--label-smoothing", "0.1", "--weight-decay", "0.05", "--opt", "adamw")
    guide = ("--teacher", str(taught / "teacher"), "--teacher-weight", "0.5", "--temperature", "2")
    config, weights = retrained(tmp_path, "out", *guide, *defaults)
    assert "opt" not in config["recipe"], "runs from before there were others go on"
    assert config == Run.open(taught / "usual").config
    assert all(torch.equal(tensor, weights[entry]) for entry, tensor in Run.open(taught / "usual").weights().items())


@pytest.mark.parametrize(
    ("flag", "values", "message"),
    [
        ("--ema", (-0.1, 1, "nan"), "decay of averaged weights must be at least 0"),
        ("--label-smoothing", (-0.1, 1, "nan"), "label smoothing must be at least 0"),
        ("--weight-decay", (-1, "inf", "nan"), "weight decay must be at least 0"),
        ("--mixup", (-1, "inf", "nan"), "alpha of mixup must be at least 0"),
        ("--cutmix", (-1, "inf", "nan"), "alpha of cutmix must be at least 0"),
        ("--sides", ("32,", "large", "32.5", ""), "--sides takes whole numbers such as"),
        ("--sides", ("16,32", "32,32"), "sides of images must be different whole numbers from 32"),
        ("--teacher-weight", (-0.1, 1.1, "nan"), "share of the loss must be from 0 to 1"),
        ("--temperature", (0, "inf", "nan"), "temperature of the distillation must be positive"),
        (
            "--opt",
            ("adamx", "fusedadam", "bnbadamw", "adahessian", "kron", ""),
            "no optimizer .* to train with; timm has",
        ),
    ],
)
def test_each_flag_refuses_what_means_nothing(
    flag: str, values: tuple[object, ...], message: str, taught: Path, tmp_path: Path
) -> None:
    for value in values:
        with pytest.raises(InputError, match=message):
            retrained(tmp_path, "out", "--teacher", str(taught / "teacher"), flag, str(value))
    assert not (tmp_path / "out").exists()


def test_flags_of_the_distillation_need_a_teacher(tmp_path: Path) -> None:
    for flag in ("--teacher-weight", "--temperature"):
        with pytest.raises(InputError, match="name its teacher with --teacher"):
            retrained(tmp_path, "out", flag, "1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [hybrid, vit])
def test_a_network_that_keeps_fixed_numbers_of_patches_trains_as_any(make: Callable[..., Arch], tmp_path: Path) -> None:
    arch = make((40, 16), False)
    retrain(arch, toy(512), replace(RECIPE, epochs=10, lr=1e-2), tmp_path / "r")
    network, _, _ = load_network(tmp_path / "r")
    assert make is hybrid or accuracy(network, toy(512), "train") > 0.8, "without position tables no place is learned"
    images, labels = toy(32).tensors("train").tensors
    torch.nn.functional.cross_entropy(network.train()(images), labels).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_accuracy_is_the_share_of_right_answers() -> None:
    network = fresh_network(SPACE.smallest, 0)
    data = toy(40)
    images, labels = data.tensors("test").tensors
    with torch.no_grad():
        wanted = (network.eval()(images).argmax(1) == labels).numpy()
    np.testing.assert_array_equal(correct(network, data, "test"), wanted)
    assert accuracy(network, data, "test", limit=10) == wanted[:10].mean()


def test_what_does_not_fit_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="32 pixels and 4 classes"):
        train_supernet(SPACES["hybrid_digits"](), toy(), RECIPE, tmp_path / "s")
    with pytest.raises(InputError, match="of 9 classes"):
        retrain(SPACE.smallest.with_classes(9), toy(), RECIPE, tmp_path / "s")
    for train in (
        lambda: train_supernet(SPACE, toy(8), RECIPE, tmp_path / "s"),
        lambda: retrain(SPACE.largest, toy(8), RECIPE, tmp_path / "s"),
    ):
        with pytest.raises(
            InputError, match=r"8 training images, fewer than a batch of \d+; give a smaller --batch-size"
        ):
            train()
    grey = replace(SPACE.largest, channels=1)
    with pytest.raises(InputError, match="takes images of 1 channels, those of toy have 3"):
        retrain(grey, toy(), RECIPE, tmp_path / "s")
    with pytest.raises(InputError, match="fewer than a batch"):
        fit(fresh_network(SPACE.smallest, 0), supervised(RECIPE, None), toy(8), RECIPE, tmp_path / "c.pt", "x")
    single = replace(RECIPE, batch_size=1)
    with pytest.raises(InputError, match="must be 2 or more; raise --batch-size"):
        fit(nn.Sequential(nn.BatchNorm1d(4)), supervised(single, None), toy(8), single, tmp_path / "c.pt", "x")
    single_place = Arch(32, 3, (Stem(4, convs=3), Embed(4), Embed(4), Head(4)))
    assert single_place.states[3] == Map(4, 1, 1)
    with pytest.raises(InputError, match="must be 2 or more; raise --batch-size"):
        fit(single_place.build(), supervised(single, None), toy(), single, tmp_path / "c.pt", "x")
    with pytest.raises(InputError, match="must be 2 or more; raise --batch-size"):
        train_supernet(toy_mobile_former(), toy(), single, tmp_path / "s")
    with pytest.raises(InputError, match="no space called 'other'"):
        space_named("other", 4)
    with pytest.raises(InputError, match="must be positive"):
        Recipe(epochs=0)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_explodes_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no longer finite"):
        fit(
            new := fresh_network(SPACE.smallest, 0),
            supervised(RECIPE, None),
            toy(),
            Recipe(2, 32, lr=1e18, warmup=0.0),
            tmp_path / "c.pt",
            "x",
        )
    assert new is not None


def test_damaged_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    train_supernet(SPACE, toy(), replace(RECIPE, epochs=1), tmp_path / "s")
    weights = tmp_path / "s" / "supernet.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors"):
        load_supernet(tmp_path / "s")
    (tmp_path / "s" / "summary.json").unlink()
    with pytest.raises(InputError, match="not trained to the end"):
        load_supernet(tmp_path / "s")
    (tmp_path / "c.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="damaged"):
        fit(fresh_network(SPACE.smallest, 0), supervised(RECIPE, None), toy(), RECIPE, tmp_path / "c.pt", "x")
    retrain(SPACE.smallest, toy(), replace(RECIPE, epochs=1), tmp_path / "r")
    (tmp_path / "r" / "arch.json").write_text(SPACE.largest.to_json())
    with pytest.raises(InputError, match="do not fit"):
        load_network(tmp_path / "r")


def test_fresh_weights_follow_from_the_seed_and_leave_torch_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (new_supernet(SPACE, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = next(name for name in one if "conv1" in name and name.endswith("weight"))
    assert torch.equal(one[name], two[name])
    assert not torch.equal(one[name], other[name])
