"""The generated data sets: what is drawn, what is split from what, and that nothing depends on how much is made."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits

from nas.data import DATASETS, SPLITS, Split, contours, digits64, load
from nas.data.memory import EmbeddedData
from nas.data.shapes import class_contours, clutter_contours, draw, separation
from search_spaces.errors import InputError

ALL_AROUND = np.deg2rad(np.arange(0, 360, 15))
PLAIN_DIGITS = replace(
    digits64.KNOBS,
    glyph_size=(32, 32),
    rotation=0.0,
    contrast=(100, 101),
    tint=0,
    texture=(0, 1),
    fragments=(0, 0),
    strokes=0,
    noise=(0, 1),
)
PLAIN_CONTOURS = replace(
    contours.KNOBS,
    scale=(0.5, 0.5),
    rotation=0.0,
    shift=0.0,
    contrast=(90, 90),
    tint=0,
    texture=(0, 1),
    clutter=0,
    noise=(0.0, 0.0),
)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mnist", {}, "there are digits, digits64, contours, contours224, imagefolder:PATH, torchvision:NAME, hf:NAME"),
        ("", {}, "digits64"),
        ("imagefolder", {}, "write imagefolder:PATH"),
        ("imagefolder:", {}, "write imagefolder:PATH"),
        ("digits64:more", {}, "write digits64"),
        ("digits64:", {}, "write digits64"),
        ("digits64", {"image_size": 15}, "from 16 to 1024 pixels, not 15"),
        ("contours", {"image_size": 1025}, "from 16 to 1024 pixels, not 1025"),
        ("contours", {"image_size": 0}, "image size"),
        ("contours", {"seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(name, **arguments)
    assert "\n" not in str(caught.value)


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, nas.data; print(sorted({'torch', 'timm', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert DATASETS.keys() == {
        *("digits", "digits64", "contours", "contours224"),
        *("imagefolder:PATH", "torchvision:NAME", "hf:NAME"),
    }


def test_the_data_sets_have_the_sizes_that_claims_rest_on() -> None:
    for name, sizes, classes, side in (
        ("digits", (1_078, 269, 450), 10, 32),
        ("digits64", (12_000, 3_000, 6_000), 10, 64),
        ("contours", (12_000, 4_000, 20_000), 16, 64),
        ("contours224", (12_000, 2_000, 5_000), 16, 224),
    ):
        data = load(name)
        assert tuple(data.size(split) for split in SPLITS) == sizes
        assert (data.name, data.classes, len(data.class_names), data.channels, data.image_size) == (
            *(name, classes, classes),
            *(3, side),
        )


def test_every_glyph_is_in_one_split_and_every_class_in_the_same_shares() -> None:
    targets = load_digits().target
    parts = digits64.split_glyphs(0)
    assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(targets)))
    for split, share in zip(SPLITS, (0.6, 0.15, 0.25), strict=True):
        counts = np.bincount(targets[parts[split]]) / np.bincount(targets)
        assert np.abs(counts - share).max() < 0.01
    assert not np.array_equal(parts["test"], digits64.split_glyphs(1)["test"])


@pytest.mark.parametrize("split", SPLITS)
def test_the_plain_digits_are_the_glyphs_of_the_same_split(split: Split) -> None:
    data = load("digits", seed=2)
    assert isinstance(data, EmbeddedData)
    groups = data.groups(split)
    assert groups is not None
    assert set(groups) == set(digits64.split_glyphs(2)[split]) and len(set(groups)) == len(groups)
    assert_array_equal(load_digits().target[groups], data.labels(split))
    assert len(set(data.labels(split)[:100])) == 10, "a prefix has all classes"
    images = next(iter(data.native().loader(split, 50)))[0]
    pixels = images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    wanted = np.repeat(load_digits().images[groups[:50], None] / 16, 3, axis=1)
    np.testing.assert_allclose(pixels.numpy(), wanted, atol=0.003)  # 17 levels, of 256
    assert abs(float(images.mean())) < 0.1 and abs(float(images.std()) - 1) < 0.1


@pytest.mark.parametrize("split", SPLITS)
def test_digits_name_the_glyph_they_show(split: Split) -> None:
    made = digits64.generate(split, 700, seed=3)
    assert made.groups is not None
    assert set(made.groups) <= set(digits64.split_glyphs(3)[split])
    assert_array_equal(load_digits().target[made.groups], made.labels)
    assert_array_equal(np.sort(made.labels.reshape(-1, 10), axis=1), np.tile(np.arange(10), (70, 1)))
    uses = np.bincount(made.groups)
    assert uses[uses > 0].max() <= 1 + 70 // 26  # the fewest glyphs of a class in a split are 26


def test_a_glyph_is_drawn_upright_whole_and_like_its_source() -> None:
    made = digits64.generate("val", 30, seed=0, knobs=PLAIN_DIGITS)
    assert made.groups is not None
    grey = made.pixels[:, 0].astype(np.float64)
    ink = np.abs(grey - np.median(grey, axis=(1, 2), keepdims=True))
    corners = set()
    for image, source in zip(ink, load_digits().images[made.groups], strict=True):
        expected = np.kron(source, np.ones((4, 4)))  # 32 pixels, as the knobs have it
        windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32)).reshape(33 * 33, -1)
        match = (windows @ expected.ravel()) / (np.linalg.norm(image) * np.linalg.norm(expected))
        assert match.max() > 0.85  # all of the ink counts: a part outside would lower it
        corners.add(int(match.argmax()))
    assert len(corners) > 20


def test_contours_of_a_class_have_one_outline_and_others_another() -> None:
    made = contours.generate(16, 64, 64, 0, "test", PLAIN_CONTOURS)
    masks = made.pixels[:, 0] != made.pixels[:, 0, :1, :1]
    by_class = [masks[made.labels == label] for label in range(16)]
    for same in by_class:
        assert len(same) == 4
        assert (same == same[0]).all()
    outlines = np.stack([same[0] for same in by_class]).reshape(16, -1)
    different = (outlines[:, None] != outlines[None]).sum(axis=2) + np.eye(16) * 4096
    assert different.min() > 100  # pixels
    assert 300 < outlines.sum(axis=1).mean() < 1200  # a circle of half the half side has 804


def test_contours_take_any_number_of_classes_and_any_size() -> None:
    made = contours.generate(37, 24, 74, 5, "val")
    assert made.pixels.shape == (74, 3, 24, 24)
    assert_array_equal(np.sort(made.labels.reshape(2, 37), axis=1), np.tile(np.arange(37), (2, 1)))
    assert_array_equal(class_contours(37, 5)[:16], class_contours(16, 5))


def test_class_contours_are_apart_and_clutter_is_no_class() -> None:
    classes = class_contours(16, 0)
    near = np.deg2rad(np.arange(-30, 31, 2))
    apart = [separation(classes[[label]], np.delete(classes, label, axis=0), near)[0] for label in range(16)]
    assert min(apart) > 0.18
    chosen = separation(clutter_contours(64, classes, np.random.default_rng(1)), classes, ALL_AROUND)
    unchosen = separation(draw(np.random.default_rng(2), 64), classes, ALL_AROUND)
    assert chosen.min() > unchosen.min()
    assert chosen.min() > 0.12


def test_difficulty_is_what_one_sees() -> None:
    made = contours.generate(16, 64, 300, 0, "test")
    assert made.difficulty is not None
    assert 0 <= made.difficulty.min() < 0.05
    assert 0.95 < made.difficulty.max() < 1
    fine = np.diff(made.pixels.astype(np.float64), axis=3).std(axis=(1, 2, 3))
    assert np.corrcoef(fine, made.difficulty)[0, 1] > 0.8


@pytest.mark.parametrize("name", ["digits64", "contours"])
def test_an_image_is_the_same_however_many_are_made_and_no_two_are_equal(name: str) -> None:
    def pixels(split: Split, count: int, seed: int) -> np.ndarray:
        if name == "digits64":
            return digits64.generate(split, count, seed=seed).pixels
        return contours.generate(16, 32, count, seed, split).pixels

    many = pixels("train", 250, 0)
    assert_array_equal(many[:130], pixels("train", 130, 0))
    every = np.concatenate([many, *(pixels(split, 100, 0) for split in SPLITS[1:]), pixels("train", 100, 1)])
    assert len({image.tobytes() for image in every}) == len(every)
    assert every.std() > 30
