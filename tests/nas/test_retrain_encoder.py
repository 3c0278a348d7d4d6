"""`nas retrain` of an encoder: it follows the features of another, or gets a classifier; nothing else is guessed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.launch.evaluate import evaluate_network
from nas.launch.retrain import retrain_network
from nas.networks import network_named
from nas.pruning import prune_network
from nas.runs import Run, digest, load_weights, save_weights
from nas.train.features import mean_distance
from nas.train.loop import Recipe
from nas.train.retrain import load_network
from search_spaces import InputError
from search_spaces.blocks import TokenPrune
from tests.nas.pruning_toy import ARCH, ENCODER, IMAGES, PARTS, Prices, priced, with_head
from tests.nas.toy import toy

RECIPE = Recipe(2, 32, 5e-4)
BARE = replace(toy(IMAGES), class_names=())


@pytest.fixture(scope="module")
def encoder(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_weights(path, with_head(load_weights(vit), ENCODER), ENCODER)
    return path


@pytest.fixture(autouse=True)
def prices() -> Iterator[None]:
    with priced():
        yield


@pytest.fixture(scope="module")
def pruned(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pruned"
    with priced():
        prune_network(str(encoder), "toy", out, speedup=2.5, target=Prices().target.name, images=64, parts=PARTS)
    return out


def distance(network: Any, other: Any) -> float:
    return mean_distance(network, other, toy(IMAGES), "test")


def test_what_pruning_left_follows_the_encoder_that_it_was(pruned: Path, encoder: Path, tmp_path: Path) -> None:
    found = retrain_network(str(pruned), "toy", RECIPE, tmp_path / "run", teacher=str(encoder))
    dense, before = network_named(str(encoder)).network, network_named(str(pruned)).network
    trained, arch, run = load_network(tmp_path / "run")
    assert arch == Run.open(pruned).arch() and arch.encoder
    assert found["test_distance"] == pytest.approx(distance(trained, dense), rel=1e-4)
    assert 0 < found["test_distance"] < 0.8 * distance(before, dense)
    assert found["test_acc"] is None is found["teacher_acc"] and found["weights"] == str(
        run.path / "weights.safetensors"
    )
    again = retrain_network(str(pruned), "toy", RECIPE, tmp_path / "run", teacher=str(encoder), resume=True)
    assert again == found


def test_it_needs_no_labels(pruned: Path, encoder: Path, tmp_path: Path) -> None:
    labelled = retrain_network(str(pruned), "toy", RECIPE, tmp_path / "labelled", teacher=str(encoder))
    with priced(data=BARE):
        found = retrain_network(str(pruned), "toy", RECIPE, tmp_path / "bare", teacher=str(encoder))
    assert found["test_distance"] == labelled["test_distance"]


def test_a_fresh_encoder_of_another_size_follows_too(encoder: Path, tmp_path: Path) -> None:
    """From an architecture file, which has no weights; the teacher sees images in its own size."""
    (tmp_path / "small.json").write_text(replace(ENCODER, image_size=24).to_json())
    found = retrain_network(str(tmp_path / "small.json"), "toy", RECIPE, tmp_path / "run", teacher=str(encoder))
    assert found["test_distance"] > 0 and Run.open(tmp_path / "run").config["start"] is None


def test_with_a_fresh_head_it_is_trained_on_the_labels(encoder: Path, tmp_path: Path) -> None:
    found = retrain_network(str(encoder), "toy", RECIPE, tmp_path / "run", fresh_head=True)
    _, arch, run = load_network(tmp_path / "run")
    assert arch == ARCH and found["test_acc"] > 0.5 and "test_distance" not in found
    assert evaluate_network(str(tmp_path / "run"), "toy", "test", None)["acc"] == found["test_acc"]
    given = load_weights(encoder)
    assert run.config["start"] != digest(given)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        (
            "encoder",
            {},
            "is an encoder: name the one whose features it is to follow with --teacher, or .* --fresh-head",
        ),
        ("encoder", {"teacher": "vit"}, "has a classifier, the network none; give the encoder whose features"),
        ("encoder", {"teacher": "arch"}, "arch.json has no weights; give a run"),
        ("encoder", {"teacher": "wide"}, "the teacher gives 48 features, the network 32"),
        ("encoder", {"teacher": "encoder", "teacher_weight": 0.0}, "--teacher-weight is of networks with classes"),
        ("encoder", {"teacher": "encoder", "temperature": 1.0}, "--temperature is of networks with classes"),
        ("encoder", {"teacher": "encoder", "thresholds": True}, "--thresholds is of networks with classes"),
        ("encoder", {"teacher": "encoder", "recipe": replace(RECIPE, sides=(32, 64))}, "--sides is of networks with"),
        (
            "encoder",
            {"teacher": "encoder", "recipe": replace(RECIPE, mixed_depth=True)},
            "--mixed-depth is of networks",
        ),
        ("adaptive", {"teacher": "encoder"}, "has thresholds, which are learned with labels"),
        ("vit", {"fresh_head": True}, "--fresh-head is of an encoder, and .* has a classifier; leave it out"),
    ],
)
def test_what_an_encoder_cannot_be_is_refused_in_one_line(
    name: str, how: dict[str, Any], message: str, vit: Path, encoder: Path, tmp_path: Path
) -> None:
    block = replace(ENCODER.blocks[3], heads=3)
    wide = replace(
        ENCODER, blocks=(replace(ENCODER.blocks[0], width=48), *ENCODER.blocks[1:3], block, ENCODER.blocks[-1])
    )
    (tmp_path / "arch.json").write_text(ENCODER.to_json())
    save_weights(tmp_path / "wide.safetensors", dict(wide.build().state_dict()), wide)
    dropping = replace(ENCODER, blocks=(*ENCODER.blocks[:4], TokenPrune(6, adaptive=True), *ENCODER.blocks[4:]))
    (tmp_path / "adaptive.json").write_text(dropping.to_json())
    paths = {"vit": vit, "encoder": encoder, "arch": tmp_path / "arch.json", "wide": tmp_path / "wide.safetensors"}
    paths["adaptive"] = tmp_path / "adaptive.json"
    given = {"recipe": RECIPE, **how}
    teacher = {} if "teacher" not in given else {"teacher": str(paths[given.pop("teacher")])}
    with pytest.raises(InputError, match=message) as found:
        retrain_network(str(paths[name]), "toy", given.pop("recipe"), tmp_path / "run", **teacher, **given)
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()


def test_processes_that_cannot_share_a_batch_are_refused(
    pruned: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes cannot share a batch of 32 images"):
        retrain_network(str(pruned), "toy", RECIPE, tmp_path / "run", teacher=str(encoder))
