"""Training at several depths and sizes: what each step trains, what comes of it, and what is refused."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from nas.cli.main import app
from nas.data import DATASETS
from nas.data.base import Split
from nas.evaluate import accuracy, calibration_batches
from nas.runs import Run, load_weights
from nas.train.loop import Recipe, fit
from nas.train.retrain import Teacher, fresh_network, load_network, retrain, supervised
from nas.train.supernet import new_supernet, train_supernet
from nas.train.variants import drawn_loops, step_logits
from search_spaces import SPACES, Arch, InputError
from search_spaces.blocks import MB3D, MB4D, Embed, Head, Position, Stem
from search_spaces.resize import resized
from search_spaces.spaces.hybrid import Hybrid, Stage
from search_spaces.variants import extract_variant, recalibrate_variant, run_variant, variant_weights
from tests.nas.toy import Toy, toy, toy_space

BLOCK = MB3D(2, 4, 8, 2, loops=3, nll=1, residual="coefficients")
ARCH = Arch(32, 3, (Stem(8), Position(), BLOCK, Embed(8, "separable"), replace(BLOCK, loops=2), Head(4)))
RECIPE = Recipe(epochs=1, batch_size=32, lr=5e-3, mixed_depth=True)


@dataclass(frozen=True)
class Resized(Toy):
    """The toy images at `image_size` pixels."""

    def tensors(self, split: Split) -> TensorDataset:
        images, labels = super().tensors(split).tensors
        size = (self.image_size, self.image_size)
        return TensorDataset(F.interpolate(images, size, mode="bilinear", antialias=True), labels)


def toy_at(image_size: int, count: int = 64) -> Resized:
    return Resized("toy", ("a", "b", "c", "d"), image_size, (0.0,) * 3, (1.0,) * 3, count)


def test_loops_are_drawn_evenly_from_seed_and_step() -> None:
    drawn = [drawn_loops(3, 7, step) for step in range(600)]
    assert drawn == [drawn_loops(3, 7, step) for step in range(600)] != [drawn_loops(3, 8, step) for step in range(600)]
    assert all(150 < drawn.count(loops) < 250 for loops in (1, 2, 3)) and {*drawn} == {1, 2, 3}


def test_a_step_trains_the_depth_that_it_draws() -> None:
    network, data = fresh_network(ARCH, 0), toy(32)
    images, labels = data.tensors("train").tensors
    guide = Teacher(fresh_network(ARCH, 1), 4)
    steps = {drawn_loops(3, RECIPE.seed, step): step for step in range(20)}
    assert steps.keys() == {1, 2, 3}
    for loops, step in steps.items():
        for teacher in (None, guide):
            (loss,) = supervised(RECIPE, teacher, ARCH)(network, images, labels, step)
            plain = replace(RECIPE, mixed_depth=False)
            shallow = ARCH.with_loops(loops)
            alone = shallow.build()
            alone.load_state_dict(variant_weights(network.state_dict(), ARCH, shallow))
            (expected,) = supervised(plain, teacher)(alone, images, labels, step)
            torch.testing.assert_close(loss, expected)
        network.zero_grad()
        loss.backward()
        used = [part.norm.weight.grad is not None for part in network.blocks[2].nll]
        assert used == [loop < loops for loop in range(3)]


def test_images_of_another_size_train_the_network_of_that_size() -> None:
    sides = (32, 48, 64)
    network, recipe = fresh_network(ARCH, 0), replace(RECIPE, mixed_depth=False, sides=sides)
    table = network.blocks[2].token_mixer.attention_biases
    torch.nn.init.normal_(table)
    for size in sides:
        images, labels = toy_at(size, 16).tensors("train").tensors
        network.zero_grad()
        (loss,) = supervised(recipe, None, ARCH)(network, images, labels, 0)
        logits = run_variant(network, ARCH, ARCH.at(size), images)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing))
        loss.backward()
        assert table.grad is not None and table.grad.any()
    step = next(step for step in range(20) if drawn_loops(3, RECIPE.seed, step) == 1)
    (loss,) = supervised(replace(RECIPE, sides=sides), None, ARCH)(network, images, labels, step)
    logits = run_variant(network, ARCH, ARCH.at(64).with_loops(1), images)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing))


def test_without_the_option_the_training_is_the_usual_one(tmp_path: Path) -> None:
    recipe = replace(RECIPE, mixed_depth=False)
    network = fresh_network(ARCH, recipe.seed)
    fit(network, supervised(recipe, None), toy(64), recipe, tmp_path / "c.pt", "x")
    assert retrain(ARCH, toy(64), recipe, tmp_path / "r").keys() == {"val_acc", "weights"}
    for name, tensor in load_weights(tmp_path / "r" / "weights.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_every_depth_learns_and_has_statistics_of_its_own(tmp_path: Path) -> None:
    recipe, data = replace(RECIPE, epochs=6, lr=1e-2), toy()
    tail = (Embed(16, "separable"), replace(BLOCK, loops=2), Head(4))
    arch = Arch(32, 3, (Stem(8), MB4D(2, 0.5), Embed(16), Position(), BLOCK, *tail))
    summary = retrain(arch, data, recipe, tmp_path / "r")
    network, _, run = load_network(tmp_path / "r")
    assert run.config["recipe"]["mixed_depth"] is True
    assert summary["by_loops"].keys() == {"1", "2", "3"} and min(summary["by_loops"].values()) > 0.5
    assert summary["by_loops"]["3"] == summary["val_acc"] == accuracy(network, data, "val")
    batches = calibration_batches(data, recipe.seed)
    for loops, found in summary["by_loops"].items():
        variant = arch.with_loops(int(loops))
        stats = recalibrate_variant(network, arch, variant, batches)
        assert found == accuracy(extract_variant(network, arch, variant, stats), data, "val")
        mean = "blocks.5.norm.running_mean"
        assert torch.equal(stats[mean], network.state_dict()[mean]) == (loops == "3")


def test_resuming_asks_for_the_same_depths(tmp_path: Path) -> None:
    retrain(ARCH, toy(64), RECIPE, tmp_path / "r")
    with pytest.raises(InputError, match="holds a run with recipe"):
        retrain(ARCH, toy(64), replace(RECIPE, mixed_depth=False), tmp_path / "r", resume=True)
    assert retrain(ARCH, toy(64), RECIPE, tmp_path / "r", resume=True)["by_loops"].keys() == {"1", "2", "3"}


def test_an_interrupted_training_at_several_depths_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe, data = replace(RECIPE, epochs=3), toy(64)

    def until(model: Any, arch: Arch, recipe: Recipe, images: torch.Tensor, step: int) -> torch.Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return step_logits(model, arch, recipe, images, step)

    with patch("nas.train.retrain.step_logits", until), pytest.raises(KeyboardInterrupt):
        retrain(ARCH, data, recipe, tmp_path / "cut")
    whole = retrain(ARCH, data, recipe, tmp_path / "whole")
    resumed = retrain(ARCH, data, recipe, tmp_path / "cut", resume=True)
    assert whole["by_loops"] == resumed["by_loops"]
    found = load_weights(tmp_path / "cut" / "weights.safetensors")
    for name, tensor in load_weights(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(tensor, found[name]), name


def test_a_network_without_loops_has_no_depths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no loops to train at several depths; leave out --mixed-depth"):
        retrain(ARCH.with_loops(1), toy(64), RECIPE, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def retrained(name: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Summary of `nas retrain` after two steps on toy images of any size; raises what the command raises."""
    words = ["retrain", str(name), "--data", "toy", "--epochs", "1", "--batch-size", "32", "--out", str(out), *flags]
    known = {"toy": lambda path, image_size, seed: toy_at(image_size or 32)}
    with patch.dict(DATASETS, known), patch.dict(SPACES, {"hybrid_toy": toy_space}):
        found = CliRunner().invoke(app, words)
    if found.exception is not None:
        raise found.exception
    return Run.open(out).summary or {}


def test_the_command_trains_at_several_depths(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(ARCH.to_json())
    mixed = retrained(tmp_path / "a.json", tmp_path / "mixed", "--mixed-depth")
    assert mixed["by_loops"].keys() == {"1", "2", "3"}
    usual = retrained(tmp_path / "a.json", tmp_path / "usual")
    assert "by_loops" not in usual
    configs = [Run.open(tmp_path / name).config for name in ("mixed", "usual")]
    assert configs[0] == {**configs[1], "recipe": {**configs[1]["recipe"], "mixed_depth": True}} != configs[1]


STILL = ("--lr", "1e-9", "--weight-decay", "0")


def test_the_command_retrains_a_run_at_another_size_from_its_weights(tmp_path: Path) -> None:
    network = fresh_network(ARCH, 3)
    torch.nn.init.normal_(network.blocks[2].token_mixer.attention_biases)
    Run.start(tmp_path / "small", "retrain", {}, resume=False).save_network(ARCH, network.state_dict())
    retrained(tmp_path / "small", tmp_path / "large", "--image-size", "48", *STILL)
    found, arch, _ = load_network(tmp_path / "large")
    assert arch == ARCH.at(48)
    expected = variant_weights(dict(network.named_parameters()) | dict(network.named_buffers()), ARCH, arch)
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-5)


def test_the_command_retrains_a_winner_at_another_size_from_the_supernet(tmp_path: Path) -> None:
    space = toy_space()
    with patch.dict(SPACES, {"hybrid_toy": toy_space}):
        train_supernet(space, toy(64), replace(RECIPE, mixed_depth=False), tmp_path / "s")
    run = Run.start(tmp_path / "found", "search", {"supernet": "../s"}, resume=False)
    (tmp_path / "found" / "winner.json").write_text(space.largest.to_json())
    run.finish({"results": [{"budget_ms": 1.0, "arch": "winner.json"}]})
    retrained(tmp_path / "found", tmp_path / "large", "--image-size", "64", *STILL)
    found, arch, _ = load_network(tmp_path / "large")
    assert arch == space.largest.at(64)
    bank = load_weights(tmp_path / "s" / "supernet.safetensors")
    stem = "stage0/stem/conv1/weight"
    key = next(key for key in bank if key.endswith(stem))
    torch.testing.assert_close(found.state_dict()["blocks.0.conv1.weight"], bank[key], rtol=0, atol=1e-5)


def test_the_command_trains_on_images_of_several_sizes(tmp_path: Path) -> None:
    """The network ends at its own size, with all that belongs to its grid trained; what it cannot be is refused before."""
    (tmp_path / "a.json").write_text(ARCH.to_json())
    flags = ("--sides", "32,48,64", "--mixed-depth")
    assert retrained(tmp_path / "a.json", tmp_path / "out", *flags)["by_loops"].keys() == {"1", "2", "3"}
    network, arch, run = load_network(tmp_path / "out")
    assert arch == ARCH and run.config["recipe"]["sides"] == [32, 48, 64]
    fresh = fresh_network(ARCH, 0)
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, dict(fresh.named_parameters())[name]), name
    cut = replace(BLOCK, groups=(4, 1, 1), orders=("contiguous",) * 3)
    (tmp_path / "cut.json").write_text(Arch(32, 3, (Stem(8), cut, Head(4))).to_json())
    with pytest.raises(InputError, match=r"cannot take images of 36 pixels: block 1 .mb3d.: 81 tokens"):
        retrained(tmp_path / "cut.json", tmp_path / "none", "--sides", "32,36")
    assert not (tmp_path / "none").exists()


def test_sizes_at_which_the_network_cannot_be_are_refused(tmp_path: Path) -> None:
    cut = replace(BLOCK, groups=(4, 1, 1), orders=("contiguous",) * 3)
    (tmp_path / "a.json").write_text(Arch(32, 3, (Stem(8), cut, Head(4))).to_json())
    with pytest.raises(InputError, match=r"cannot take images of 36 pixels: block 1 .mb3d.: 81 tokens"):
        retrained(tmp_path / "a.json", tmp_path / "out", "--image-size", "36")
    assert not (tmp_path / "out").exists()


def test_extremes_of_a_supernet_are_judged_at_their_own_resolution(tmp_path: Path) -> None:
    stages = (Stage((8, 16), (1,)), Stage((8, 16), (1,), block=MB3D(2, 4, 8)))
    space = Hybrid("two_sizes", (32, 16), stages, (0, 1), (1,), 0.5, classes=4)
    data = toy_at(32, 256)
    summary = train_supernet(space, data, Recipe(epochs=1, batch_size=64, augment=False), tmp_path / "s")
    supernet = new_supernet(space, 0)
    supernet.load_state_dict(load_weights(tmp_path / "s" / "supernet.safetensors"))
    small = space.smallest
    assert small.image_size == 16
    network = supernet.extract(small, supernet.recalibrate(small, calibration_batches(data, 0)))
    own = [(network(resized(images, 16)).argmax(1) == labels).float() for images, labels in data.loader("val", 250)]
    assert summary["smallest_acc"] == pytest.approx(float(torch.cat(own).mean()))
