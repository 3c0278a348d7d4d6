"""The commands on a folder of images at 224 pixels, and `nas retrain` with ImageNet's recipe in small."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from search_spaces import SPACES
from search_spaces.blocks import MB3D
from search_spaces.spaces.hybrid import Hybrid, Stage
from tests.cli.running import nas


def tiny_space(classes: int = 2) -> Hybrid:
    """A few networks of 224 pixels: maps of 56 x 56, then maps or tokens of 28 x 28."""
    stages = (Stage((8,), (1,)), Stage((8, 16), (1,), block=MB3D(2, 4, 8)))
    return Hybrid("tiny224", 224, stages, (0, 1), (1,), 0.5, classes)


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACES, "tiny224", tiny_space)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, in the layout of ImageNet."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(120 * label, 120 * label + 130, (240, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root


@pytest.mark.slow
def test_from_a_supernet_to_a_network_on_a_folder_of_images(images: Path, tmp_path: Path) -> None:
    data = ("--data", f"imagefolder:{images}", "--epochs", 1, "--batch-size", 8)
    trained = nas("train", "--space", "tiny224", *data, "--out", tmp_path / "s")
    assert 0 <= trained["largest_acc"] <= 1
    nas("measure", "--space", "tiny224", "--classes", 2, "--rounds", 4)
    found = nas(
        "search",
        "--supernet",
        tmp_path / "s",
        "--target",
        "cpu-ort-fp32-b1-t1",
        "--budget-ms",
        1000,
        "--trials",
        3,
        "--out",
        tmp_path / "f",
    )
    assert found["evaluations"] in (2, 3)  # a network that is proposed twice is evaluated once
    network = nas(
        "retrain", tmp_path / "f", *data, "--mixup", 0.8, "--cutmix", 1, "--ema", 0.99, "--out", tmp_path / "n"
    )
    assert Path(network["weights"]).is_file() and 0 <= network["test_acc"] <= 1


@pytest.mark.slow
def test_a_network_of_the_hybrid_space_is_retrained_on_a_folder_of_images(images: Path, tmp_path: Path) -> None:
    """The flags of docs/imagenet.md; the teacher's weights come from a file, because nothing is fetched."""
    arch = tmp_path / "a.json"
    arch.write_text(SPACES["hybrid"](classes=2).smallest.to_json())
    data = ("--data", f"imagefolder:{images}", "--epochs", 1, "--batch-size", 8)
    save_file(timm.create_model("test_vit", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    flags = ("--weight-decay", 0.05, "--label-smoothing", 0.1, "--mixup", 0.8, "--cutmix", 1, "--ema", 0.99996)
    found = nas(
        "retrain",
        arch,
        *data,
        *flags,
        "--teacher",
        f"timm:test_vit@{tmp_path / 'w.safetensors'}",
        "--out",
        tmp_path / "n",
    )
    recipe = json.loads((tmp_path / "n" / "config.json").read_text())["recipe"]
    assert (recipe["mixup"], recipe["cutmix"], recipe["ema"]) == (0.8, 1.0, 0.99996)
    assert Path(found["weights"]).is_file() and found["teacher_acc"] is not None
