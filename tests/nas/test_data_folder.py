"""The user's own images: layouts, splits, errors, decoding, and draws that do not depend on worker processes."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing

from nas.data import SPLITS, Data, load
from nas.data.imagefolder import ImageFolderData, decoded
from nas.data.loading import at_indices, seeded_globals
from nas.data.pictures import IMAGENET_MEAN, IMAGENET_STD, Pictures
from search_spaces.errors import InputError


def write(folder: Path, names: Iterable[str], colour: int = 128) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (20, 16), (colour, 10 * number % 256, 0)).save(folder / name)


def numbered(count: int) -> list[str]:
    return [f"{number:03d}.png" for number in range(count)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in the layout of ImageNet, which has no test folder."""
    for colour, name in ((40, "cat"), (200, "dog")):
        write(tmp_path / "train" / name, numbered(20), colour)
        write(tmp_path / "val" / name, numbered(3), colour)
    return tmp_path


def opened(root: Path, seed: int = 0, image_size: int | None = 16) -> ImageFolderData:
    data = load(f"imagefolder:{root}", image_size=image_size, seed=seed)
    assert isinstance(data, ImageFolderData)
    return data


def test_without_a_test_folder_val_is_the_test_split(root: Path) -> None:
    data = opened(root, image_size=None)
    assert (data.name, data.class_names, data.image_size) == (f"imagefolder:{root}", ("cat", "dog"), 224)
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert [data.size(split) for split in SPLITS] == [36, 4, 6]
    assert {Path(path).parts[-3] for path in data.files["test"].paths} == {"val"}
    train, val = (set(data.files[split].paths) for split in SPLITS[:2])
    assert not train & val
    assert {Path(path).parts[-3] for path in train | val} == {"train"}
    assert np.bincount(data.labels("val")).tolist() == [2, 2]
    assert opened(root).files["val"].paths == data.files["val"].paths
    assert set(opened(root, seed=1).files["val"].paths) != val


def test_three_folders_are_the_three_splits(root: Path) -> None:
    write(root / "test" / "cat", numbered(5))
    write(root / "test" / "dog", numbered(4))
    data = opened(root)
    assert [data.size(split) for split in SPLITS] == [40, 6, 9]
    for split in SPLITS:
        assert {Path(path).parts[-3] for path in data.files[split].paths} == {split}


def test_class_folders_alone_are_split_and_mixed(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 3), ("train", 40)):
        write(tmp_path / name, numbered(count))
    (tmp_path / "a" / "deeper").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "a" / "deeper" / "x.JPEG")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    data = opened(tmp_path)
    assert data.class_names == ("a", "b", "train")
    counts = np.array([np.bincount(data.labels(split), minlength=3) for split in SPLITS])
    assert counts.tolist() == [[15, 1, 28], [3, 1, 6], [3, 1, 6]]
    assert len({path for split in SPLITS for path in data.files[split].paths}) == 64
    assert len(set(data.labels("train")[:12])) > 1
    for path, label in zip(data.files["train"].paths, data.labels("train"), strict=True):
        assert Path(path).relative_to(tmp_path).parts[0] == data.class_names[label]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["0", "1", "2", "9", "10", "11", "100"], ["0", "1", "2", "9", "10", "11", "100"]),
        (["002", "10", "1"], ["1", "002", "10"]),
        (["n02", "n10", "n1"], ["n02", "n1", "n10"]),
        (["2", "10", "cat"], ["10", "2", "cat"]),
    ],
)
def test_classes_are_in_the_order_of_text_and_numbers_in_their_own(
    tmp_path: Path, names: list[str], wanted: list[str]
) -> None:
    for name in names:
        write(tmp_path / name, numbered(3))
    data = opened(tmp_path)
    assert data.class_names == tuple(wanted)
    for path, label in zip(data.files["train"].paths, data.labels("train"), strict=True):
        assert Path(path).parts[-2] == wanted[label]


def make(root: Path, folders: dict[str, int]) -> Path:
    for folder, count in folders.items():
        write(root / folder, numbered(count))
    return root


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({}, "has no images"),
        ({"cat": 0, "dog": 0}, "has no images"),
        ({"cat": 5, "dog": 0}, "class folder .*dog has no images"),
        ({"cat": 5}, "only the class cat"),
        ({"cat": 5, "dog": 2}, r"class dog .*has 2 images; 3 are needed"),
        ({"train/cat": 5, "train/dog": 1, "val/cat": 1, "val/dog": 1}, "class dog .*has 1 images; 2 are needed"),
        ({"train/cat": 5, "train/dog": 5}, "no val/"),
        ({"train/cat": 5, "train/dog": 5, "val/cat": 1, "val/cow": 1}, "dog only in .*train; cow only in .*val"),
        (
            {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "test/a": 1, "test/c": 1},
            "b only in .*train; c only in .*test",
        ),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "test": 3}, "test has no images"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 0}, "class folder .*b has no images"),
        ({**{f"train/{name}": 2 for name in "abcdefg"}, "val/a": 1, "val/b": 1}, "c, d, e and 2 more only in"),
        ({".": 2}, r"\(as .*000\.png\) has 2 images; 3 are needed to split it"),
        ({"train": 1, "val": 5}, r"train \(as .*000\.png\) has 1 images; 2 are needed"),
        ({"train": 5, "val": 5, "test/a": 5, "test/b": 5}, "train has no images"),
        ({"train/a": 5, "train/b": 5, "val": 5}, "val has no images"),
        ({".": 5, "cat": 5}, "only the class cat"),
    ],
)
def test_a_folder_that_does_not_fit_is_said_in_one_line(tmp_path: Path, folders: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        opened(make(tmp_path, folders))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({".": 40, ".hidden": 5}, [28, 6, 6]),
        ({"train": 20, "val": 4}, [18, 2, 4]),
        ({"train": 20, "val": 4, "test": 5, ".": 3}, [20, 4, 5]),
    ],
)
def test_images_without_classes_are_split_and_have_no_labels(
    tmp_path: Path, folders: dict[str, int], sizes: list[int]
) -> None:
    root = make(tmp_path, folders)
    (root / "notes.txt").touch()
    data = load(f"imagefolder:{root}", image_size=16, labels=False)
    assert isinstance(data, ImageFolderData) and not data.labelled and data.classes == 0
    assert [data.size(split) for split in SPLITS] == sizes
    assert len({path for split in SPLITS for path in data.files[split].paths}) == sum(sizes)
    assert all((data.labels(split) == -1).all() for split in SPLITS)
    images, labels = next(iter(data.loader("test", 2)))
    assert images.shape == (2, 3, 16, 16) and labels.tolist() == [-1, -1]
    with pytest.raises(InputError, match="has images without labels, which this needs; put the images in a folder"):
        opened(root)


def test_files_beside_class_folders_are_passed_over(root: Path) -> None:
    without = opened(root).files
    write(root, numbered(3))
    write(root / "train", numbered(3))
    assert load(f"imagefolder:{root}", labels=False).labelled
    assert all(opened(root).files[split].paths == without[split].paths for split in SPLITS)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        opened(tmp_path / "nowhere")


def test_images_come_normalised_with_their_labels(root: Path) -> None:
    data = opened(root)
    images, labels = next(iter(data.loader("test", 6)))
    assert (images.shape, images.dtype, labels.dtype) == ((6, 3, 16, 16), torch.float32, torch.int64)
    assert labels.tolist() == data.labels("test").tolist()
    red = 255 * (images[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0])
    assert torch.allclose(red.mean((1, 2)), torch.tensor([40.0, 200.0])[labels], atol=1)
    assert [len(labels) for _, labels in data.loader("train", 16)] == [16, 16, 4]
    assert [len(labels) for _, labels in data.loader("train", 16, seed=0)] == [16, 16]
    assert [len(labels) for _, labels in data.loader("train", 16, limit=5)] == [5]


def test_images_at_indices_alone_are_loaded(root: Path) -> None:
    data, indices = opened(root), np.array([5, 0, 31])
    images, labels = next(iter(at_indices(data.loader("train", 4), indices)))
    assert labels.tolist() == data.labels("train")[indices].tolist()
    every = torch.cat([images for images, _ in data.loader("train", 36)])
    assert torch.equal(images, every[indices])


def test_batches_of_given_sizes_start_again_where_the_images_end(root: Path) -> None:
    batches = list(opened(root).loader("train", [5, 30, 8], seed=0))
    assert [len(labels) for _, labels in batches] == [5, 30, 8]
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images[36:], images[:7])
    assert len({image.numpy().tobytes() for image in images}) == 36


def first(data: Data, batch: int, seed: int, augment: bool = True) -> torch.Tensor:
    return torch.cat([images for images, _ in data.loader("train", batch, seed=seed, augment=augment, limit=12)])


def test_augmentation_depends_on_the_seed_alone(root: Path) -> None:
    data = opened(root)
    images = first(data, 12, 0)
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(images, first(data, 12, 0))
    assert torch.equal(images, first(data, 3, 0))  # other workers load other images
    assert not torch.equal(images, first(data, 12, 1))
    assert not torch.equal(images, first(data, 12, 0, augment=False))


def test_augmentation_is_deits(root: Path) -> None:
    """RandAugment and erasing, and nothing of these where images are only read."""
    augmented, plain = (opened(root).loader("train", 12, seed=0, augment=augment).dataset for augment in (True, False))
    assert isinstance(augmented, Pictures) and isinstance(plain, Pictures)
    (colours,) = (step for step in augmented.transform.transforms if isinstance(step, RandAugment))
    (erasing,) = (step for step in augmented.transform.transforms if isinstance(step, RandomErasing))
    assert {op.magnitude for op in colours.ops} == {9} and {op.magnitude_std for op in colours.ops} == {0.5}
    assert erasing.probability == 0.25 and erasing.per_pixel
    assert not any(isinstance(step, RandAugment | RandomErasing) for step in plain.transform.transforms)


def test_the_global_generators_are_left_as_they_were() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - what timm calls

    with seeded_globals(1, 2):
        inside = draw()
    states = random.getstate(), torch.get_rng_state()
    with seeded_globals(1, 2):
        assert draw() == inside
    with seeded_globals(1, 3):
        assert not set(draw()) & set(inside)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def complaint(loader: Iterable[object]) -> str:
    """What an `InputError` says; its traceback is let go, since it would keep the workers alive for ten seconds."""
    try:
        for _ in loader:
            pass
    except InputError as error:
        error.__traceback__ = None
        return str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("sharded", [False, True])
def test_an_unreadable_image_is_named_in_one_line_from_a_worker_too(root: Path, sharded: bool) -> None:
    bad = root / "val" / "dog" / "bad.jpg"
    bad.write_bytes(b"not an image")
    loader = opened(root).loader("test", 2)
    assert loader.num_workers > 0
    said = complaint(prepare_data_loader(loader) if sharded else loader)
    assert said.startswith(f"{bad} cannot be read as an image (")
    assert "\n" not in said


def test_a_cut_off_file_is_unreadable(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    assert decoded(str(whole)).size == (64, 64)
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.png cannot be read"):
        decoded(str(cut))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 50_000, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = decoded(str(path))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == ((195,) * 3 if mode == "I;16" else (255,) * 3)
