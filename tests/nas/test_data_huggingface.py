"""Data sets of Hugging Face: which images are in which split, pictures of any mode, and what cannot be had in one line."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data import SPLITS, load
from nas.data.huggingface import HuggingFaceData, Places, places
from nas.data.pictures import IMAGENET_MEAN, IMAGENET_STD
from search_spaces.errors import InputError

NAMES = ("cat", "dog")
MANY, FEW = np.arange(200) % 2, np.arange(30) % 2
HIDDEN = np.full(50, -1)


def sources(own: dict[str, Any], seed: int = 0) -> dict[str, tuple[str, int]]:
    """Of each split, where its images are from and how many there are."""
    found = places("hf:x", own, NAMES, seed)
    for place in found.values():
        assert np.array_equal(own[place.source][place.rows], place.labels)
        assert len(place.rows) < 8 or len(set(place.labels[:8])) == 2, "classes are mixed"
    return {split: (found[split].source, len(found[split].rows)) for split in SPLITS}


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({"train": MANY, "validation": FEW, "test": FEW}, [("train", 200), ("validation", 30), ("test", 30)]),
        ({"test": FEW, "train": MANY}, [("train", 180), ("train", 20), ("test", 30)]),
        ({"train": MANY, "valid": FEW}, [("train", 180), ("train", 20), ("valid", 30)]),
        ({"train": MANY, "val": FEW, "test": HIDDEN}, [("train", 180), ("train", 20), ("val", 30)]),
        ({"train": MANY, "test": FEW, "extra": FEW}, [("train", 180), ("train", 20), ("test", 30)]),
        ({"train": MANY}, [("train", 140), ("train", 30), ("train", 30)]),
        ({"everything": MANY}, [("everything", 140), ("everything", 30), ("everything", 30)]),
    ],
)
def test_splits_are_the_data_sets_own_as_far_as_it_has_them(own: dict[str, Any], wanted: list[tuple[str, int]]) -> None:
    assert [*sources(own).values()] == wanted
    found = places("hf:x", own, NAMES, 0)
    every = [(place.source, row) for place in found.values() for row in place.rows.tolist()]
    assert len(set(every)) == len(every), "no image is in two splits"
    other = places("hf:x", own, NAMES, 1)
    assert not np.array_equal(found["train"].rows, other["train"].rows), "the seed chooses"


def test_a_class_of_the_list_may_have_no_images() -> None:
    assert len(places("hf:x", {"train": MANY}, (*NAMES, "unicorn"), 0)["test"].rows) == 30


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train": HIDDEN}, "has labels in its splits none, of train; train is needed"),
        ({"validation": MANY, "test": FEW}, "has labels in its splits validation, test"),
        ({"first": MANY, "second": FEW}, "train is needed, with one of validation, valid, val, dev, with test"),
        ({"train": MANY, "val": FEW, "dev": FEW, "test": FEW}, "give its images as folders: imagefolder:PATH"),
        ({"train": np.array([0, 0, 0, 1])}, "the class dog of hf:x has 1 images; 3 are needed to split it"),
    ],
)
def test_splits_that_are_none_of_ours_are_named(own: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        places("hf:x", own, NAMES, 0)
    assert "\n" not in str(caught.value)


def test_pictures_of_any_mode_are_cut_to_size_and_normalised() -> None:
    pictures = [Image.new(mode, (40, 30), colour) for mode, colour in (("RGB", (255, 0, 0)), ("L", 255), ("1", 1))]
    rows = [{"image": picture, "label": 0} for picture in pictures]
    split = Places("train", np.array([1, 0, 2]), np.zeros(3, np.int64))
    data = HuggingFaceData(
        "hf:x",
        NAMES,
        16,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "image",
        {"train": rows},
        {"train": split, "val": split, "test": split},
    )
    images, labels = next(iter(data.loader("train", 3)))
    assert images.shape == (3, 3, 16, 16) and labels.tolist() == [0, 0, 0] and data.size("train") == 3
    pixels = images * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    wanted = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 1]])[:, :, None, None].expand(3, 3, 16, 16)
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)
    shuffled = [next(iter(data.loader("train", 2, seed=seed, augment=True)))[0] for seed in (0, 0, 1)]
    assert torch.equal(shuffled[0], shuffled[1]) and not torch.equal(shuffled[0], shuffled[2])


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r'hf:beans needs datasets, which is not installed; pip install "vit-nas\[hf\]"'
    ):
        load("hf:beans")


class ImageColumn:
    """The package's type of a column of images."""


class ClassColumn:
    """The package's type of a column of classes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Table:
    """The few methods of the package's tables that are called: the package itself need not be installed here."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        self.rows, self.features = rows, features

    def select_columns(self, names: list[str]) -> "Table":
        return Table([{name: row[name] for name in names} for row in self.rows], self.features)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, int):
            return self.rows[which]
        return {name: [row[name] for row in self.rows[which]] for name in self.rows[0]}


def package(monkeypatch: pytest.MonkeyPatch, **features: Any) -> list[str]:
    """Stands for `datasets`: it has one data set, `animals`, of 40 images with these columns of classes; gives what was asked for."""
    asked: list[str] = []
    columns = {"img": ImageColumn(), **features}
    rows = [
        {name: Image.new("L", (20, 20), row) if name == "img" else row % len(columns[name].names) for name in columns}
        for row in range(40)
    ]

    def load_dataset(name: str) -> dict[str, Table]:
        asked.append(name)
        if "animals" not in name:
            raise ConnectionError(f"Couldn't reach '{name}'\non the Hub (offline)")
        return {"train": Table(rows, columns), "test": Table(rows[:10], columns)}

    stub = SimpleNamespace(load_dataset=load_dataset, Image=ImageColumn, ClassLabel=ClassColumn)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    return asked


def test_a_data_set_is_loaded_by_its_name_or_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = package(monkeypatch, label=ClassColumn(["cat", "dog"]))
    data = load("hf:zoo/animals", image_size=32)
    assert (data.name, data.class_names, data.image_size, asked) == ("hf:zoo/animals", NAMES, 32, ["zoo/animals"])
    assert [data.size(split) for split in SPLITS] == [36, 4, 10]
    assert isinstance(data, HuggingFaceData)
    images, labels = next(iter(data.loader("test", 10)))
    grey = (images * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1))[:, 0, 0, 0]
    assert [round(255 * float(value)) % 2 for value in grey] == labels.tolist(), "each image has its own label"
    folder = tmp_path / "animals@home"
    folder.mkdir()
    assert load(f"hf:{folder}").size("test") == 10 and asked[-1] == str(folder)


def test_of_several_columns_of_classes_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"fine": ClassColumn(["cat", "dog", "ant", "bee"]), "coarse": ClassColumn(["mammal", "insect"])}
    package(monkeypatch, **both)
    assert (load("hf:animals@fine").classes, load("hf:animals@coarse").classes) == (4, 2)
    for name in ("hf:animals", "hf:animals@colour"):
        with pytest.raises(InputError, match=r"of classes fine, coarse; .*hf:NAME@COLUMN chooses"):
            load(name)
    package(monkeypatch, label=ClassColumn(["cat", "dog"]), colour=ClassColumn(["red", "green", "blue"]))
    assert load("hf:animals").class_names == NAMES


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, label=ClassColumn(["cat", "dog"]))
    with pytest.raises(InputError, match=r"hf:beans cannot be had \(Couldn't reach 'beans' on the Hub") as caught:
        load("hf:beans")
    assert "connect to the internet, or give a folder: hf:./FOLDER" in str(caught.value) and "\n" not in str(
        caught.value
    )


def test_a_folder_is_read_by_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for split, count in (("train", 20), ("test", 4)):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    data = load(f"hf:{tmp_path}", image_size=16)
    assert data.class_names == NAMES and [data.size(split) for split in SPLITS] == [36, 4, 8]
    images, labels = next(iter(data.loader("test", 8)))
    assert images.shape == (8, 3, 16, 16) and labels.bincount().tolist() == [4, 4]
    with pytest.raises(InputError, match="cannot be had"):
        load(f"hf:{tmp_path / 'missing'}")
