"""`nas prune` by images without labels: judged by how often the dense network's best class stays; what needs labels is refused."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.cli import main
from nas.data import load
from nas.data.pictures import IMAGENET_MEAN, IMAGENET_STD
from nas.evaluate import best_classes
from nas.networks import Named, network_named
from nas.pruning import Healing, prune_network
from nas.pruning.job import job_of
from nas.pruning.judge import harmed, val_accuracy
from nas.pruning.sheets import sheets
from nas.runs import load_weights, save_weights
from search_spaces import InputError
from tests.nas.pruning_toy import ARCH, ENCODER, IMAGES, PARTS, Prices, priced, with_head
from tests.nas.toy import toy

HOW: dict[str, Any] = {"target": Prices().target.name, "images": 64, "parts": PARTS}
BARE = replace(toy(IMAGES), class_names=())  # whose labels must not be looked at


@pytest.fixture(scope="module")
def encoder(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_weights(path, with_head(load_weights(vit), ENCODER), ENCODER)
    return path


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's images as files, so that normalised they are nearly what they were."""
    root = tmp_path_factory.mktemp("flat")
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for number, image in enumerate(toy(200).tensors("train").tensors[0].numpy()):
        pixels = (255 * (image * std + mean)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(root / f"{number:03d}.png")
    return root


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced(data=BARE):
        yield


def test_a_flat_folder_is_enough(vit: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, out = f"imagefolder:{flat}", tmp_path / "run"
    found = prune_network(str(vit), name, out, speedup=1.6, **HOW)
    data = load(name, image_size=32, labels=False)
    networks = network_named(str(vit)).network, network_named(str(out)).network
    dense, left = (best_classes(network, data, "test") for network in networks if network is not None)
    assert found["before"]["acc"] is None is found["after"]["acc"] and found["before"]["agreement"] == 1.0
    assert found["after"]["agreement"] == (dense == left).mean() > 0.8 and len(set(dense.tolist())) == 4
    assert found["fitted_head"] is None and found["speedup_measured"] >= 1.6
    assert "near chance" not in capsys.readouterr().err
    row = next(row for row in sheets(found)[0].rows if row[0] == "best class as the dense network's")
    assert row[1] == "100.00%" and row[3].endswith("points")
    assert f"On {found['after']['agreement']:.2%} of the test images" in (out / "report.html").read_text()


def test_a_network_of_any_classes_keeps_them(vit: Path, tmp_path: Path) -> None:
    nine = ARCH.with_classes(9)
    save_weights(tmp_path / "nine.safetensors", with_head(load_weights(vit), nine), nine)
    found = prune_network(str(tmp_path / "nine.safetensors"), "toy", tmp_path / "run", speedup=1.5, **HOW)
    assert network_named(str(tmp_path / "run")).arch.classes == 9 and not (tmp_path / "run" / "dense").exists()
    assert found["before"]["agreement"] == 1.0 and 0 < found["after"]["agreement"] <= 1


def test_search_validation_tells_harm_by_agreement(vit: Path) -> None:
    job = job_of(str(vit), "toy", None, Prices().target.name, None, 64, PARTS, 0, False)
    dense = job.dense()
    other = replace(dense, weights={name: -weight for name, weight in dense.weights.items()})
    assert val_accuracy(job, dense) == 1.0 > val_accuracy(job, other)
    assert harmed(job, dense, other) and not harmed(job, other, dense) and not harmed(job, dense, dense)


def test_an_encoder_is_trained_by_its_features(encoder: Path, tmp_path: Path) -> None:
    healing = Healing(1, batch_size=32, mixup=0.5)
    found = prune_network(str(encoder), "toy", tmp_path / "run", speedup=2, healing=healing, **HOW)
    assert found["training"]["val_distance"] > 0 and found["before"]["distance"] == 0 < found["after"]["distance"]
    assert found["after"]["acc"] is None is found["after"]["agreement"]


@pytest.mark.parametrize(
    ("how", "flag"),
    [({"max_drop": 0.01}, "--max-drop"), ({"speedup": 2, "healing": Healing(1)}, "--train-epochs")],
)
def test_what_needs_labels_is_refused_before_rows_are_measured(
    how: dict[str, Any], flag: str, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.pruning.job.find_tables", lambda *given: pytest.fail("measured"))
    message = (
        f"{flag} needs labels, which toy does not have; leave it out, or put the images in a folder for each class"
    )
    with pytest.raises(InputError, match=message):
        prune_network(str(vit), "toy", tmp_path / "run", **how, **HOW)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--space", "hybrid_digits"),
        ("retrain", "digits_vit"),
        ("retrain", "digits_vit", "--teacher", "contours_vit"),
        ("evaluate", "digits_vit"),
    ],
    ids=" ".join,
)
def test_other_commands_refuse_them_in_one_line(
    words: tuple[str, ...],
    flat: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = () if words[0] == "evaluate" else ("--out", str(tmp_path / "out"))
    monkeypatch.setattr("signal.signal", lambda *how: None)  # the tests keep their own handler
    monkeypatch.setattr(sys, "argv", ["nas", *words, "--data", f"imagefolder:{flat}", *out])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and not (tmp_path / "out").exists()
    assert (
        told.err
        == f"nas: imagefolder:{flat} has images without labels, which this needs; put the images in a folder for each class\n"
    )


def test_an_exported_file_may_be_compared_on_them(flat: Path) -> None:
    assert Named(ARCH).images_to_check(f"imagefolder:{flat}", 1).shape == (30, 3, 32, 32)
