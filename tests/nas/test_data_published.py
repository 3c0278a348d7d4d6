"""Data sets of torchvision on the disk: read without a download and without a pickle, split, or refused in one line."""

import bz2
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from nas.data import SPLITS, load
from nas.data.memory import EmbeddedData
from search_spaces import InputError

RNG = np.random.default_rng(0)
COUNTS = {"train": 200, "t10k": 60}
PIXELS = {part: RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8) for part, count in COUNTS.items()}
LABELS = {part: np.sort(np.arange(count) % 10).astype(np.uint8) for part, count in COUNTS.items()}  # class by class


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file: magic, shape, content."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root: Path, name: str) -> Path:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part in COUNTS:
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(PIXELS[part]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS[part]))
    return root


def opened(name: str, **options: int) -> EmbeddedData:
    data = load(name, **options)
    assert isinstance(data, EmbeddedData)
    return data


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_the_users_folder_is_read_and_a_tenth_of_train_held_out(name: str, tmp_path: Path) -> None:
    data = opened(f"torchvision:{name}@{write_idx(tmp_path, name)}")
    assert (data.name, data.image_size, data.classes) == (f"torchvision:{name}@{tmp_path}", 28, 10)
    assert [data.size(split) for split in SPLITS] == [180, 20, 60]
    assert np.bincount(data.labels("val")).tolist() == [2] * 10
    known = {image.tobytes(): label for part in COUNTS for image, label in zip(PIXELS[part], LABELS[part], strict=True)}
    for split, part in (("train", "train"), ("val", "train"), ("test", "t10k")):
        images = data.images(split)
        assert (images.pixels == images.pixels[:, :1]).all(), "grey"
        assert [known[image[0].tobytes()] for image in images.pixels] == images.labels.tolist()
        assert {image[0].tobytes() for image in images.pixels} <= {image.tobytes() for image in PIXELS[part]}
        assert len(set(images.labels[:20])) > 4, "classes are mixed"
    assert len({image.tobytes() for split in SPLITS for image in data.images(split).pixels}) == 260


def test_without_a_folder_the_cache_is_looked_in_and_images_are_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "torchvision", "MNIST")
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    data = load("torchvision:MNIST", image_size=48)
    images, labels = next(iter(data.loader("train", 32, seed=0, augment=True)))
    assert images.shape == (32, 3, 48, 48) and labels.dtype == torch.int64
    assert data.native().image_size == 28
    assert_array_equal(data.labels("val"), load("torchvision:MNIST").labels("val"))
    assert not np.array_equal(data.labels("val"), load("torchvision:MNIST", seed=1).labels("val"))


def test_a_format_of_text_and_labels_that_are_lists(tmp_path: Path) -> None:
    for file, count in (("usps.bz2", 200), ("usps.t.bz2", 20)):
        lines = [f"{1 + row % 10} " + " ".join(f"{pixel + 1}:0.5" for pixel in range(256)) for row in range(count)]
        (tmp_path / file).write_bytes(bz2.compress("\n".join(lines).encode()))
    data = opened(f"torchvision:USPS@{tmp_path}")
    assert (data.image_size, data.class_names) == (16, tuple("0123456789"))
    assert [data.size(split) for split in SPLITS] == [180, 20, 20]
    assert set(data.images("test").pixels.ravel()) == {191}


@pytest.mark.parametrize("name", ["MNIST", "USPS", "SVHN", "STL10"])
def test_what_is_not_there_is_said_in_one_line_and_not_fetched(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"does not hold {name} whole.*torchvision:{name}@FOLDER") as caught:
        load(f"torchvision:{name}@{tmp_path}")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", idx(PIXELS["train"])[:1000], b"\0\0\x0d\x03" * 100])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match="does not hold MNIST whole"):
        load(f"torchvision:MNIST@{tmp_path}")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "ImageNet", "mnist", "@x"])
def test_other_data_sets_are_refused_without_touching_their_files(name: str, tmp_path: Path) -> None:
    """CIFAR's files are pickles: reading one runs what it says."""
    with pytest.raises(InputError, match=r"there are MNIST, .* give others as folders: imagefolder:PATH"):
        load(f"torchvision:{name}@{tmp_path}")
    with pytest.raises(InputError, match="write torchvision:MNIST@FOLDER"):
        load("torchvision:MNIST@")
