"""Classes of one's own inside `nas prune`: a head is fitted to them, also to rare ones, and a network near chance is said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from nas.data import Split
from nas.evaluate import accuracy
from nas.launch.evaluate import evaluate_network
from nas.pruning import prune_network
from nas.pruning.outcome import near_chance
from nas.pruning.own_head import _best, _features, _layers, check_labelled, drawn, with_own_head
from nas.runs import load_weights, save_weights
from nas.train.retrain import fresh_network, load_network
from search_spaces import Arch
from search_spaces.blocks import ClassToken, Head
from tests.nas.pruning_toy import (
    ARCH,
    BLOCK,
    IMAGES,
    PARTS,
    Prices,
    priced,
    with_head,
)
from tests.nas.toy import Toy, toy

HOW: dict[str, Any] = {"target": Prices().target.name, "images": 64, "parts": PARTS}


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


TEN = ARCH.with_classes(10)


@pytest.fixture(scope="module")
def ten(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's ViT with a head of ten classes that it never learned."""
    path = tmp_path_factory.mktemp("ten") / "ten.safetensors"
    save_weights(path, with_head(load_weights(vit), TEN), TEN)
    return path


def test_other_classes_get_a_head_of_their_own(ten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = prune_network(str(ten), "toy", tmp_path / "run", speedup=1.5, **HOW)
    assert found["before"]["acc"] > 0.8 and found["fitted_head"] == str(tmp_path / "run" / "dense")
    assert "the network tells 10 classes apart, the data has 4 classes" in capsys.readouterr().err
    dense, arch, run = load_network(tmp_path / "run" / "dense")
    assert arch == ARCH and run.summary is not None and run.summary["val_acc"] == accuracy(dense, toy(IMAGES), "val")
    given, own = load_weights(ten), dense.state_dict()
    assert all(
        torch.equal(own[name], given[name]) for name in given if "head.weight" not in name and "head.bias" not in name
    )
    assert evaluate_network(str(tmp_path / "run"), "toy", "test", None)["acc"] == pytest.approx(found["after"]["acc"])
    (tmp_path / "run" / "summary.json").unlink()
    with patch("nas.pruning.own_head._fitted", side_effect=AssertionError("fitted again")):
        assert prune_network(str(ten), "toy", tmp_path / "run", speedup=1.5, resume=True, **HOW) == found


@pytest.mark.parametrize("distilled", [False, True])
@torch.no_grad()
def test_the_head_is_the_regression_on_the_networks_features(distilled: bool, tmp_path: Path) -> None:
    head = Head(4, pool="token", distilled=distilled)
    blocks = (ARCH.blocks[0], ClassToken(1 + distilled), ARCH.blocks[2], BLOCK, head)
    network = fresh_network(Arch(32, 3, blocks), 0).eval()
    fitted = with_own_head(network, toy(), "source", tmp_path / "dense")
    features, labels = _features(fitted, toy(), "train", np.arange(256))
    assert len(features) == 1 + distilled == len(_layers(fitted)) and features[0].shape == (256, 32)
    images = toy().tensors("train").tensors[0]
    scores = [
        torch.from_numpy(own) @ layer.weight.T + layer.bias
        for own, layer in zip(features, _layers(fitted), strict=True)
    ]
    torch.testing.assert_close(fitted(images), sum(scores) / len(scores), rtol=1e-4, atol=1e-4)
    assert float((fitted(images).argmax(1).numpy() == labels).mean()) > 0.35
    for layer in _layers(fitted):
        assert abs(float(layer.weight.sum(0).abs().max())) < 1e-2, (
            "of a multinomial regression, whose classes add up to nothing"
        )


class LongTail(Toy):
    """The toy with a single image of the last class, at the end, and more of the first."""

    def tensors(self, split: Split) -> TensorDataset:
        images, labels = super().tensors(split).tensors
        places = torch.arange(len(labels))
        kept = torch.where((labels == 3) & (places < len(labels) - 1), places - 3, places)
        return TensorDataset(images[kept], labels[kept])


def test_rare_classes_are_fitted_too(tmp_path: Path) -> None:
    data = LongTail("toy", ("a", "b", "c", "d"), 32, (0.0,) * 3, (1.0,) * 3, 256)
    check_labelled(data)
    with patch("nas.pruning.own_head.TRAIN_IMAGES", 64), patch("nas.pruning.own_head._best", wraps=_best) as best:
        with_own_head(fresh_network(ARCH, 0).eval(), data, "source", tmp_path / "dense")
    assert np.bincount(best.call_args.args[1]).tolist()[3] == 1 and len(best.call_args.args[1]) == 64


def test_every_class_is_drawn_and_most_images_as_they_come() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 2 + [3])
    with patch("nas.pruning.own_head.TRAIN_IMAGES", 16):
        assert drawn(labels, 4).tolist() == [*range(11), 50, 51, 80, 81, 82]
        assert drawn(labels[:16], 4).tolist() == [*range(16)]
    with patch("nas.pruning.own_head.TRAIN_IMAGES", 2):
        assert drawn(labels, 4).tolist() == [0, 50, 80, 82], "of each at least one"


def test_an_accuracy_near_chance_is_said(vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a network was trained on the same classes in another order."""
    other = {name: w.roll(1, 0) if "head." in name else w for name, w in load_weights(vit).items()}
    save_weights(tmp_path / "other.safetensors", other, ARCH)
    prune_network(str(tmp_path / "other.safetensors"), "toy", tmp_path / "run", budget_ms=1000, **HOW)
    assert "near chance for 4 classes: it may have been trained on others than those of toy" in capsys.readouterr().err
    prune_network(str(vit), "toy", tmp_path / "own", budget_ms=1000, **HOW)
    assert "near chance" not in capsys.readouterr().err
    assert near_chance(0.001, 1000, 20) and not near_chance(0.003, 1000, 20) and not near_chance(0.6, 2, 1000)
    assert not near_chance(0.0, 10, 19), "too few to tell"


def test_two_classes_have_two_scores() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    labels = (features @ [1, -2, 0.5] + 0.3 > 0).astype(np.int64)
    weight, bias = _best(features, labels, features, labels)
    assert weight.shape == (2, 3) and bias.shape == (2,)
    assert float(((features @ weight.T + bias).argmax(1) == labels).mean()) > 0.97
