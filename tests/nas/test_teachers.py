"""Teachers by name: they see images as they were trained to, follow only safe files, and what does not fit is refused."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2 import functional as vision

from nas.data import DATASETS
from nas.evaluate import accuracy
from nas.launch.retrain import retrain_network
from nas.runs import Run, save_weights
from nas.train.loop import Recipe
from nas.train.retrain import Teacher, fresh_network
from nas.train.teachers import teacher_named
from search_spaces import InputError
from tests.nas.test_cascade import vit
from tests.nas.toy import Toy, toy, toy_space

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.3, 0.5)
HUB = "timm.models._hub.hf_hub_download"


def data_of(classes: int, image_size: int = 32) -> Toy:
    """The toy data with a normalisation and classes of its own."""
    return replace(toy(64), class_names=tuple(map(str, range(classes))), image_size=image_size, mean=MEAN, std=STD)


def model_of(name: str, classes: int) -> nn.Module:
    """A timm model with weights drawn by a fixed seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=classes).eval()


def saved(name: str, classes: int, path: Path) -> nn.Module:
    """The model, whose weights are then in the file."""
    model = model_of(name, classes)
    save_file(model.state_dict(), path)
    return model


@torch.no_grad()
def wanted_scores(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the timm model says of pixels from 0 to 1, prepared as timm's documentation prepares them."""
    config = model.default_cfg
    resized = vision.resize(pixels, list(config["input_size"][1:]), antialias=True)
    return model(vision.normalize(resized, list(config["mean"]), list(config["std"])))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet.r160_in1k"])  # means and deviations of 0.5, and of ImageNet
@pytest.mark.parametrize("image_size", [32, 160, 224])  # both are trained on 160 pixels
def test_a_timm_teacher_scores_as_the_model_itself(name: str, image_size: int, tmp_path: Path) -> None:
    model = saved(name, 4, tmp_path / "w.safetensors")
    pixels = torch.rand(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    teacher = teacher_named(f"timm:{name}@{tmp_path / 'w.safetensors'}", data_of(4, image_size))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (teacher.classes, teacher.weight, teacher.temperature) == (4, Teacher.weight, Teacher.temperature)
    found = teacher.scores(vision.normalize(pixels, list(MEAN), list(STD)), Recipe(1), 0)
    torch.testing.assert_close(found, wanted_scores(model, pixels), rtol=1e-4, atol=1e-4)


def test_pretrained_weights_come_as_safetensors(tmp_path: Path) -> None:
    model = saved("test_vit", 1000, tmp_path / "w.safetensors")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with patch(HUB, return_value=str(tmp_path / "w.safetensors")) as hub:
        teacher = teacher_named("timm:test_vit", data_of(1000), 0.9, 4.0)
    assert [call.kwargs["filename"] for call in hub.call_args_list] == ["model.safetensors"]
    assert (teacher.weight, teacher.temperature) == (0.9, 4.0)
    found = teacher.scores(vision.normalize(pixels, list(MEAN), list(STD)), Recipe(1), 0)
    torch.testing.assert_close(found, wanted_scores(model, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError()])
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_weights_that_cannot_be_had_are_never_sought_in_a_pickle(name: str, error: Exception) -> None:
    """No network, or nothing on the hub but a pickle; the message is one line."""
    with (
        patch(HUB, side_effect=error) as hub,
        patch("timm.models._builder.load_state_dict_from_url") as url,
        pytest.raises(InputError, match=rf"of timm:{name} cannot be had .* timm:{name}@FILE\.safetensors$") as found,
    ):
        teacher_named(f"timm:{name}", data_of(1000))
    assert "\n" not in str(found.value)
    assert {call.kwargs["filename"] for call in hub.call_args_list} == {"model.safetensors"}
    url.assert_not_called()


def test_a_model_whose_weights_are_a_pickle_is_refused() -> None:
    message = r"publishes no weights of timm:legacy_seresnet18 as safetensors; .*@FILE"
    with patch("timm.create_model") as created, pytest.raises(InputError, match=message):
        teacher_named("timm:legacy_seresnet18", data_of(1000))
    created.assert_not_called()


def test_other_classes_are_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with patch(HUB) as hub, pytest.raises(InputError, match=r"tells 1000 classes apart, toy has 4; .*@FILE"):
        teacher_named("timm:test_vit", data_of(4))
    hub.assert_not_called()
    saved("test_vit", 7, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit test_vit with the 4 classes of toy \(size mismatch .*\[7\]"):
        teacher_named(f"timm:test_vit@{tmp_path / 'w.safetensors'}", data_of(4))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vot", "timm knows no model 'test_vot'; is it test_vit"),
        ("test_vit.mars", r"no model 'test_vit\.mars'; is it test_vit"),
        ("???", r"timm\.list_models\(\) lists them"),
        ("", "timm knows no model ''"),
        ("hf-hub:timm/test_vit.r160_in1k", "timm knows no model 'hf-hub"),
        ("local-dir:here@w.safetensors", "timm knows no model 'local-dir"),
        ("test_vit@nowhere.safetensors", r"nowhere\.safetensors is not a file; .* as timm:test_vit@FILE"),
        ("test_vit@", "is not a file"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with patch(HUB) as hub, pytest.raises(InputError, match=message):
        teacher_named(f"timm:{name}", data_of(4))
    hub.assert_not_called()


def test_files_that_are_no_such_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    torch.save(model_of("test_vit", 4).state_dict(), path)
    for content in (path.read_bytes(), b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a whole safetensors file .* with safetensors\.torch\.save_file"):
            teacher_named(f"timm:test_vit@{path}", data_of(4))
    saved("test_vit", 4, path)
    with pytest.raises(InputError, match="does not fit test_resnet") as found:
        teacher_named(f"timm:test_resnet@{path}", data_of(4))
    assert len(str(found.value)) < 500 + len(str(path)) and "\n" not in str(found.value)


def test_a_run_of_another_image_size_sees_its_own(tmp_path: Path) -> None:
    arch = replace(toy_space().smallest, image_size=64)
    network = fresh_network(arch, 0).eval()
    Run.start(tmp_path / "r", "retrain", {}, resume=False).save_network(arch, network.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher = teacher_named(str(tmp_path / "r"), data_of(4))
    with torch.no_grad():
        wanted = network(F.interpolate(images, (64, 64), mode="bilinear"))
    torch.testing.assert_close(teacher.scores(images, Recipe(1), 0), wanted)
    Run.start(tmp_path / "p", "prune", {}, resume=False).save_network(arch, network.state_dict())
    for name in (tmp_path / "r" / "weights.safetensors", tmp_path / "p"):
        assert teacher_named(str(name), data_of(4)).described() == teacher.described()
    (tmp_path / "a.json").write_text(arch.to_json())
    Run.start(tmp_path / "s", "search", {}, resume=False)
    blind = vit(16).with_classes(0)
    save_weights(tmp_path / "e.safetensors", fresh_network(blind, 0).state_dict(), blind)
    for name, message in (
        (tmp_path / "a.json", "has no weights"),
        (tmp_path / "none", "is no zoo name, timm:NAME"),
        (tmp_path / "s", "is a search, whose winners have no weights yet; retrain one"),
        (tmp_path / "e.safetensors", "is an encoder, which tells no classes apart"),
    ):
        with pytest.raises(InputError, match=message):
            teacher_named(str(name), data_of(4))


def test_a_student_follows_a_timm_teacher(tmp_path: Path) -> None:
    arch, file = tmp_path / "a.json", tmp_path / "w.safetensors"
    arch.write_text(toy_space().smallest.to_json())
    saved("test_vit", 4, file)
    teacher = teacher_named(f"timm:test_vit@{file}", toy(64), 1.0)
    with patch.dict(DATASETS, {"toy": lambda path, image_size, seed: toy(64)}):
        found = retrain_network(
            str(arch), "toy", Recipe(1, 32), tmp_path / "out", teacher=f"timm:test_vit@{file}", teacher_weight=1.0
        )
    assert found["teacher_acc"] == accuracy(teacher.network, toy(64), "test")
    assert Run.open(tmp_path / "out").config["teacher"] == teacher.described()


def test_shares_and_temperatures_that_mean_nothing() -> None:
    network = nn.Identity()
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="share of the loss must be from 0 to 1"):
            Teacher(network, 4, weight=weight)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="temperature of the distillation must be positive and finite"):
            Teacher(network, 4, temperature=temperature)
