"""Models of timm and Hugging Face by name, as networks of ours."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import functional as vision

from compress import seeing
from nas.cost import params
from nas.launch.evaluate import evaluate_network
from nas.launch.retrain import retrain_network
from nas.networks import network_named
from nas.pretrained import hf_model
from nas.pruning import prune_network
from nas.runs import Run, save_weights
from nas.train.loop import Recipe
from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import Head, Patch
from search_spaces.zoo.loading import OF
from tests.compress.test_from_module import shuffled
from tests.compress.test_slicing import network
from tests.nas.pruning_toy import Prices, priced
from tests.nas.test_data_folder import numbered, write
from tests.nas.test_teachers import HUB, data_of, model_of, saved, wanted_scores

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.3, 0.5)


def pixels(side: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_timm_model_by_name_gives_its_scores_and_as_a_data_set_normalises_too(tmp_path: Path) -> None:
    model = saved("test_vit", 4, tmp_path / "w.safetensors")
    named = network_named(f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    assert named.network is not None and named.arch.classes == 4 and named.arch.image_size == 160
    images, config = pixels(160), model.default_cfg
    own = vision.normalize(images, list(config["mean"]), list(config["std"]))
    torch.testing.assert_close(named.network(own), wanted_scores(model, images), rtol=1e-4, atol=1e-5)
    ours = named.seeing(data_of(4, 160))
    assert ours.network is not None and ours.normalisation is None
    found = ours.network(vision.normalize(images, list(MEAN), list(STD)))
    torch.testing.assert_close(found, wanted_scores(model, images), rtol=1e-4, atol=1e-5)
    assert ours.seeing(data_of(4, 160)) is ours, "once is enough"


def test_published_weights_come_as_safetensors(tmp_path: Path) -> None:
    saved("test_vit", 1000, tmp_path / "w.safetensors")
    with patch(HUB, return_value=str(tmp_path / "w.safetensors")) as hub:
        named = network_named("timm:test_vit")
    assert [call.kwargs["filename"] for call in hub.call_args_list] == ["model.safetensors"]
    assert named.arch.classes == 1000 and params(named.arch) == sum(
        p.numel() for p in model_of("test_vit", 1000).parameters()
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vot", "no model 'test_vot'; is it test_vit"),
        ("timm:test_resnet@{file}", "timm:test_resnet@.*: of timm's networks VisionTransformer is described"),
        ("timm:test_vit@nowhere.safetensors", "nowhere.safetensors is not a file"),
        ("timm:vit_tiny_patch16_224@{file}", "does not fit vit_tiny_patch16_224"),
    ],
)
def test_what_cannot_be_had_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    saved("test_resnet", 4, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message) as found:
        network_named(name.format(file=tmp_path / "w.safetensors"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [OSError("We couldn't connect to the hub\nand more"), ValueError("no such file")])
def test_what_hugging_face_cannot_give_is_one_line(error: Exception) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    line = r"hf:nowhere cannot be had as a ViTForImageClassification in safetensors \(.*\); connect to the internet, or give a folder"
    with (
        patch.object(transformers.ViTForImageClassification, "from_pretrained", side_effect=error),
        pytest.raises(InputError, match=line) as found,
    ):
        network_named("hf:nowhere")
    assert str(error).splitlines()[0] in str(found.value) and "\n" not in str(found.value)


def hf_folder(kind: str, folder: Path) -> Any:
    """A tiny model of a class of Hugging Face, whose weights all matter, and which the folder holds."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    from tests.compress.test_huggingface import SMALL

    model = shuffled(getattr(transformers, kind)(transformers.ViTConfig(**SMALL)))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_a_folder_of_hugging_face_gives_its_scores(tmp_path: Path) -> None:
    model, images = hf_folder("ViTForImageClassification", tmp_path), pixels(32)
    named = network_named(f"hf:{tmp_path}")
    assert named.network is not None and named.arch.classes == 7 and not named.arch.encoder
    torch.testing.assert_close(named.network(images), model(images).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_kept_in_bfloat16_is_read_in_float32(tmp_path: Path) -> None:
    model, images = hf_folder("ViTForImageClassification", tmp_path), pixels(32)
    model.bfloat16().save_pretrained(tmp_path)
    assert hf_model(str(tmp_path)).dtype == torch.float32
    named = network_named(f"hf:{tmp_path}")
    assert named.network is not None
    torch.testing.assert_close(named.network(images), model.float()(images).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_without_a_classifier_is_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = hf_folder("ViTModel", tmp_path), pixels(32)
    named = network_named(f"hf:{tmp_path}")
    assert named.network is not None and named.arch.encoder and "no classifier" in capsys.readouterr().err
    wanted = model(images).last_hidden_state[:, 0]
    torch.testing.assert_close(named.network(images), wanted, rtol=0, atol=1e-5)


def test_one_that_lacks_more_is_refused(tmp_path: Path) -> None:
    hf_folder("ViTForImageClassification", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("vit.layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"lacks 1 of the weights of a ViTForImageClassification, such as vit\.layernorm\.weight"
    ) as found:
        network_named(f"hf:{tmp_path}")
    assert "\n" not in str(found.value)


def test_a_missing_extra_is_named() -> None:
    with (
        patch.dict(sys.modules, {"transformers": None}),
        pytest.raises(InputError, match=r'pip install "vit-nas\[hf\]"'),
    ):
        network_named("hf:google/vit-base-patch16-224")


@torch.no_grad()
def test_an_image_normalised_in_another_way_gets_the_same_scores() -> None:
    bare = network()
    made = seeing(bare, (0.5,) * 3, (0.25,) * 3, MEAN, STD)
    images = pixels(32)
    own = vision.normalize(images, [0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(made(vision.normalize(images, list(MEAN), list(STD))), bare(own), rtol=1e-4, atol=1e-5)
    assert made.arch == bare.arch
    padded = replace(bare.arch, blocks=(replace(bare.arch.blocks[0], padding=2), *bare.arch.blocks[1:])).build().eval()
    behind = seeing(padded, (0.5,) * 3, (0.25,) * 3, MEAN, STD)
    scores = behind(vision.normalize(images, list(MEAN), list(STD)))
    torch.testing.assert_close(scores, padded(own), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 channels"):
        seeing(bare, (0.5,), (0.25,), MEAN, STD)


@torch.no_grad()
def test_released_mobilevits_see_pixels_from_0_to_1_and_networks_of_ours_what_a_data_set_gives(tmp_path: Path) -> None:
    """Their convolutions pad, so a block that normalises is put before them; of a file of ours nobody says anything else."""
    torch.manual_seed(0)
    state = zoo.arch("mobilevit_xxs").with_classes(4).build().eval().state_dict()
    naming = next(iter(OF["mobilevit_xxs"].namings(zoo.arch("mobilevit_xxs"))))
    theirs = {name: state[entry.place] for name, entry in naming.items()}
    save_file(theirs, tmp_path / "theirs.safetensors")
    images = pixels(64, 2)
    for named in (
        network_named("mobilevit_xxs", weights=tmp_path / "theirs.safetensors"),
        network_named(str(tmp_path / "theirs.safetensors")),
    ):
        small = named.at(64)
        assert small.network is not None and small.normalisation == ((0, 0, 0), (1, 1, 1))
        ours = small.seeing(data_of(4, 64))
        assert ours.network is not None and ours.arch.blocks[0].kind == "normalise"
        found = ours.network(vision.normalize(images, list(MEAN), list(STD)))
        torch.testing.assert_close(found, small.network(images), rtol=1e-4, atol=1e-5)
        assert Arch.from_json(ours.arch.to_json()) == ours.arch
    own = small.network
    save_weights(tmp_path / "ours.safetensors", own.state_dict(), own.arch)
    assert network_named(str(tmp_path / "ours.safetensors")).normalisation is None


def test_a_timm_model_is_evaluated_and_retrained_with_another_number_of_classes(tmp_path: Path) -> None:
    """The command's own functions, on the embedded data."""
    saved("test_vit", 16, tmp_path / "w.safetensors")
    name = f"timm:test_vit@{tmp_path / 'w.safetensors'}"
    found = evaluate_network(name, "contours", "val", 20)
    assert found["images"] == 20 and 0 <= found["acc"] <= 1
    with pytest.raises(InputError, match="tells 16 classes apart, digits has 10"):
        evaluate_network(name, "digits", "val", 20)
    summary = retrain_network(name, "digits", Recipe(1, batch_size=64), tmp_path / "run", image_size=32)
    named = network_named(str(tmp_path / "run"))
    assert named.arch.classes == 10 and named.arch.image_size == 32 and 0 <= summary["test_acc"] <= 1
    assert isinstance(named.arch.blocks[0], Patch) and isinstance(named.arch.blocks[-1], Head)


def coloured(folder: Path) -> str:
    """A folder of images of three classes, which differ in colour, as the command takes it."""
    for colour, name in enumerate(("cat", "dog", "owl")):
        write(folder / "train" / name, numbered(16), 100 * colour)
        write(folder / "val" / name, numbered(4), 100 * colour)
    return f"imagefolder:{folder}"


def test_a_timm_model_is_pruned_on_a_folder_of_other_classes(tmp_path: Path) -> None:
    """A thousand classes become the folder's three, by a head that is fitted; what is left needs no timm."""
    saved("test_vit", 1000, tmp_path / "w.safetensors")
    model, data = f"timm:test_vit@{tmp_path / 'w.safetensors'}", coloured(tmp_path / "images")
    how: dict[str, Any] = {"target": Prices().target.name, "parts": ("heads", "neurons"), "images": 16}
    with priced():
        found = prune_network(model, data, tmp_path / "run", speedup=1.3, **how)
    named = network_named(str(tmp_path / "run"))
    assert named.network is not None and named.arch.classes == 3 and named.arch.image_size == 160
    assert found["fitted_head"] == str(tmp_path / "run" / "dense") and found["before"]["acc"] > 0.9, "colours are easy"
    assert found["after"]["measured_median_ms"] <= found["budget_ms"] and found["after"]["acc"] > 0.6
    assert evaluate_network(str(tmp_path / "run"), data, "test", None)["acc"] == pytest.approx(found["after"]["acc"])


@pytest.mark.parametrize("form", ["run", "zoo name", "Hugging Face", "timm", "ships"])
def test_whatever_names_a_model_is_pruned(form: str, tmp_path: Path) -> None:
    """As the command does, but for times; what is left loads by its run's name."""
    how: dict[str, Any] = {"target": Prices().target.name, "parts": ("heads", "neurons"), "images": 16}
    name, data = str(tmp_path / "given"), coloured(tmp_path / "images")
    if form == "run":
        run = Run.start(tmp_path / "given", "retrain", {}, resume=False)
        run.save_network(network().arch, network().state_dict())
        run.finish({})
    elif form == "Hugging Face":
        hf_folder("ViTForImageClassification", tmp_path / "given")
        name = f"hf:{name}"
    elif form == "timm":
        saved("test_vit", 3, tmp_path / "w.safetensors")
        name = f"timm:test_vit@{tmp_path / 'w.safetensors'}"
    elif form == "ships":
        name = "digits_vit"
    else:
        torch.save({"model": model_of("deit_tiny_patch16_224", 3).state_dict()}, tmp_path / "given.pth")
        name, how["weights"], how["images"], how["parts"] = (
            "deit_tiny_patch16_224",
            tmp_path / "given.pth",
            4,
            ("heads",),
        )
    with priced():
        found = prune_network(name, data, tmp_path / "run", speedup=1.3, **how)
    left = network_named(str(tmp_path / "run"))
    assert left.network is not None and params(left.arch) == found["after"]["params"] < found["before"]["params"]
    assert found["after"]["measured_median_ms"] <= found["budget_ms"] and found["after"]["acc"] is not None
    assert (found["fitted_head"] is None) is (form in ("zoo name", "timm")), "the others tell other classes apart"
