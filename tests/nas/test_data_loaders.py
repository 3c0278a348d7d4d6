"""Loaders over data in memory, and the cache they are filled from."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.testing import assert_array_equal
from torch.utils.data import DataLoader

from nas.data import SPLITS, Data, contours, digits64, load
from nas.data.cache import Images, cached, read
from nas.data.contours import ContoursData
from nas.data.loading import Batch
from nas.data.memory import SHIFT, EmbeddedData, GeneratedData
from search_spaces.errors import InputError
from search_spaces.resize import resized

SIZES = {"train": 150, "val": 40, "test": 60}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (digits64, contours):
        monkeypatch.setattr(module, "SIZES", SIZES)
    monkeypatch.setattr(contours, "SIZES_LARGE", SIZES)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data() -> EmbeddedData:
    loaded = load("digits64")
    assert isinstance(loaded, EmbeddedData)
    return loaded


def batches(loader: DataLoader[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_without_a_seed_every_image_comes_once_in_the_fixed_order(data: EmbeddedData) -> None:
    loader = data.loader("train", 64)
    assert [len(labels) for _, labels in loader] == [64, 64, 22]
    images, labels = batches(loader)
    assert (images.dtype, labels.dtype, images.shape[1:]) == (torch.float32, torch.int64, (3, 64, 64))
    assert_array_equal(labels.numpy(), data.labels("train"))
    restored = 255 * (images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1))
    assert_array_equal(restored.round().to(torch.uint8).numpy(), data.images("train").pixels)
    assert torch.equal(loader.dataset[7][0], images[7])


@pytest.mark.parametrize(("name", "size"), [("digits", 16), ("digits64", 48), ("contours", 80), ("contours224", 192)])
def test_another_size_is_the_native_images_resized_batch_by_batch(name: str, size: int) -> None:
    """Normalised and, where asked, augmented before: networks of all sizes see the same images."""
    native, other = load(name).native(), load(name, image_size=size)
    assert (other.name, other.image_size, other.native().image_size) == (name, size, native.image_size)
    for split in SPLITS:
        for options in ({}, {"seed": 1}, {"seed": 1, "augment": True}, {"limit": 5}):
            both = zip(native.loader(split, 30, **options), other.loader(split, 30, **options), strict=True)
            for (images, labels), (found, found_labels) in both:
                assert torch.equal(found, resized(images, size))
                assert found.shape[2:] == (size, size)
                assert torch.equal(found_labels, labels)


def test_native_data_share_what_is_in_memory() -> None:
    data = load("digits64", image_size=32)
    assert isinstance(data, EmbeddedData)
    assert data.native().images("val") is data.images("val")


def test_a_seed_shuffles_and_drops_the_partial_batch(data: EmbeddedData) -> None:
    fixed, _ = batches(data.loader("train", 64))
    loader = data.loader("train", 64, seed=1)
    images, labels = batches(loader)
    assert len(images) == len(loader) * 64 == 128
    assert not torch.equal(images, fixed[:128])
    assert len({image.numpy().tobytes() for image in images}) == 128
    known = {image.numpy().tobytes(): label for image, label in zip(fixed, data.labels("train"), strict=True)}
    assert all(known[image.numpy().tobytes()] == label for image, label in zip(images, labels, strict=True))
    assert all(torch.equal(*pair) for pair in zip(batches(loader), (images, labels), strict=True))
    assert torch.equal(batches(data.loader("train", 64, seed=1))[0], images)
    assert not torch.equal(batches(data.loader("train", 64, seed=2))[0], images)


def test_augmentation_shifts_each_image_by_a_little_and_by_seed_and_index_only(data: EmbeddedData) -> None:
    plain, _ = batches(data.loader("train", 10, seed=1))
    moved, _ = batches(data.loader("train", 10, seed=1, augment=True))
    assert torch.equal(moved, batches(data.loader("train", 10, seed=1, augment=True))[0])
    assert torch.equal(moved, batches(data.loader("train", 50, seed=1, augment=True))[0])
    assert not torch.equal(moved, batches(data.loader("train", 10, seed=2, augment=True))[0])
    found = []
    for before, after in zip(plain[:20].numpy(), moved[:20].numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (64, 64), axis=(1, 2))
        places = [(y, x) for y in range(9) for x in range(9) if np.array_equal(windows[:, y, x], after)]
        assert len(places) == 1
        found += places
    assert len(set(found)) > 10
    assert {0, 8} & set(np.array(found).ravel().tolist())


def test_a_limit_keeps_the_first_images_of_the_fixed_order(data: EmbeddedData) -> None:
    images, _ = batches(data.loader("train", 8))
    few, few_labels = batches(data.loader("train", 8, limit=20))
    assert torch.equal(few, images[:20])
    assert sorted(few_labels.tolist()) == sorted([*range(10)] * 2)
    shuffled, _ = batches(data.loader("train", 10, seed=0, limit=20))
    first = {image.numpy().tobytes() for image in few}
    assert {image.numpy().tobytes() for image in shuffled} == first
    assert len(data.loader("train", 8, limit=10_000)) == 19


@pytest.mark.parametrize(
    ("batch", "limit", "said"),
    [(8, 0, "limit"), (0, None, "batch size"), (151, None, "150 images"), (32, 20, "20 images")],
)
def test_a_loader_that_would_be_empty_is_refused(data: EmbeddedData, batch: int, limit: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        data.loader("train", batch, seed=0, limit=limit)


@pytest.mark.parametrize("augment", [False, True])
def test_accelerate_shards_a_loader(data: EmbeddedData, augment: bool) -> None:
    loader = data.loader("train", 15, seed=4, augment=augment)
    shards = [list(prepare_data_loader(loader, num_processes=2, process_index=index)) for index in (0, 1)]
    assert [len(shard) for shard in shards] == [5, 5]
    together = [batch for pair in zip(*shards, strict=True) for batch in pair]
    for (images, labels), (expected, expected_labels) in zip(together, loader, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_groups_and_difficulty_come_with_the_images(data: EmbeddedData) -> None:
    groups = data.groups("test")
    assert groups is not None
    assert set(groups) <= set(digits64.split_glyphs(0)["test"])
    procedural = load("contours", image_size=32)
    assert isinstance(procedural, ContoursData)
    assert procedural.groups("test") is None
    assert procedural.difficulty("val").shape == (40,)


def refuse(*_: object, **__: object) -> Images:
    raise AssertionError("the cache was not used")


def test_a_split_is_made_when_asked_for_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("contours", image_size=32)
    assert not (tmp_path / "cache").exists()
    expected = batches(first.loader("val", 40))[0]
    (folder,) = (tmp_path / "cache" / "data").iterdir()
    assert [file.name for file in folder.iterdir()] == ["val-40.npz"]
    monkeypatch.setattr(contours, "generate", refuse)
    assert torch.equal(batches(load("contours", image_size=32).loader("val", 40))[0], expected)
    assert isinstance(first, ContoursData)
    with pytest.raises(AssertionError, match="not used"):
        first.labels("test")


def folder_of(data: Data) -> str:
    assert isinstance(data, GeneratedData)
    return data.folder


def test_other_content_has_another_place_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {folder_of(load(name, seed=seed)) for name in ("contours", "contours224") for seed in (0, 1)}
    names |= {folder_of(load("digits64", seed=seed)) for seed in (0, 1)}
    monkeypatch.setattr(digits64, "GENERATOR_VERSION", 10_000)
    names.add(folder_of(load("digits64")))
    monkeypatch.setattr(digits64, "KNOBS", replace(digits64.KNOBS, strokes=9))
    assert len(names | {folder_of(load("digits64"))}) == 8


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "no archive"])
def test_a_damaged_file_is_noticed_said_and_made_again(
    data: EmbeddedData, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = data.images("val").pixels
    (path,) = (tmp_path / "cache").rglob("val-40.npz")
    content = path.read_bytes()
    if damage == "changed":
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["pixels"][0, 0, 0, 0] ^= 1
        np.savez(path, **arrays)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "no archive": b"x" * 100}[damage])
    with caplog.at_level(logging.WARNING):
        again = load("digits64")
        assert isinstance(again, EmbeddedData)
        assert_array_equal(again.images("val").pixels, expected)
    assert "damaged" in caplog.text
    assert_array_equal(read(path).pixels, expected)


def test_a_cache_that_cannot_be_written_is_said_and_the_data_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "file"))
    assert load("digits64").labels("val").shape == (40,)
    assert "NAS_CACHE" in caplog.text


def test_two_that_make_the_same_file_at_once_both_get_whole_images(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "val-3.npz"
    both = threading.Barrier(2, timeout=30)
    images = Images(np.arange(36, dtype=np.uint8).reshape(3, 3, 2, 2), np.arange(3))
    results: list[Images] = []

    def make() -> Images:
        both.wait()
        return images

    workers = [threading.Thread(target=lambda: results.append(cached(path, make))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 2
    assert_array_equal(read(path).pixels, images.pixels)
    assert [file.name for file in path.parent.iterdir()] == ["val-3.npz"]
