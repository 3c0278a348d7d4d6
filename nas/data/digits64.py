"""Handwritten digits among clutter, 64 x 64: the glyphs of scikit-learn's `load_digits` on coloured, noisy canvases."""

import hashlib
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from nas.data.base import SPLITS, Data, Labels, Split
from nas.data.cache import Images
from nas.data.drawing import FULL, Int16, UInt8, add_noise, blend, contrasting, mix, segment, smooth
from nas.data.memory import GeneratedData
from nas.progress import track

__all__ = ["GENERATOR_VERSION", "KNOBS", "SIZES", "Knobs", "generate", "load", "source", "split_glyphs"]

GENERATOR_VERSION = 1  # raise it whenever a seed gives other images than before


@dataclass(frozen=True)
class Knobs:
    """What makes the task hard. Pairs are the ends of a uniform draw; sizes in pixels, colours in levels of 255."""

    glyph_size: tuple[int, int] = (38, 54)
    rotation: float = 15.0  # degrees to either side
    contrast: tuple[int, int] = (100, 170)  # ink against the background
    tint: int = 35  # how far a colour's channels stray from grey
    texture: tuple[int, int] = (5, 25)  # between the two colours of the background
    fragments: tuple[int, int] = (2, 3)
    fragment_size: tuple[int, int] = (11, 20)  # of the whole glyph a fragment is cut from
    fragment_contrast: tuple[int, int] = (20, 45)
    strokes: int = 1  # behind the glyph
    front_strokes: int = 0
    stroke_length: tuple[int, int] = (10, 30)
    stroke_width: tuple[float, float] = (1.0, 2.5)
    noise: tuple[int, int] = (8, 25)  # 2.4 standard deviations


KNOBS = Knobs()
SIZES: dict[Split, int] = {"train": 12_000, "val": 3_000, "test": 6_000}
SHARES = {"train": 0.60, "val": 0.15}  # of the glyphs of each class; the rest is for the test split
SIZE = 64
CLASSES = 10
CHUNK = 100  # images drawn from one generator: image i is the same however many are made
GLYPHS, ORDER, DRAW = range(3)  # what a generator is for
MAP, CELL = 80, 8  # a glyph of 8 x 8 cells, enlarged by 8, with a cell of margin
POINT = 8  # binary places of a fixed-point position in a map


def load(image_size: int | None, seed: int) -> Data:
    """The data set of a seed; its images are drawn 64 x 64, and resized where another size is asked for.

    Glyphs are split by class before any image is made, so that no glyph is in two splits; `groups` gives the index of
    the glyph in `load_digits`.
    """
    version = f"v{GENERATOR_VERSION}-{hashlib.sha256(repr(KNOBS).encode()).hexdigest()[:8]}"
    return GeneratedData(
        name="digits64",
        class_names=tuple(str(digit) for digit in range(CLASSES)),
        image_size=image_size or SIZE,
        native_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        sizes=SIZES,
        folder=f"digits64-{SIZE}-{seed}-{version}",
        make=partial(generate, seed=seed, knobs=KNOBS),
    )


def generate(split: Split, count: int, *, seed: int, knobs: Knobs = KNOBS) -> Images:
    """The first `count` images of a split."""
    chunks = -(-count // CHUNK)
    glyphs, labels = _sequence(split, chunks * CHUNK, seed)
    maps = _maps()
    own = split_glyphs(seed)[split]
    pixels = np.empty((chunks * CHUNK, 3, SIZE, SIZE), dtype=np.uint8)
    for chunk in track(range(chunks), f"making digits64 {split}", chunks):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        rng = np.random.default_rng([seed, DRAW, SPLITS.index(split), chunk])
        pixels[part] = _compose(rng, maps[glyphs[part]], maps[own], knobs)
    return Images(pixels[:count], labels[:count], groups=glyphs[:count])


def split_glyphs(seed: int) -> dict[Split, Labels]:
    """Indices into `load_digits` of each split's glyphs: 60, 15 and 25 percent of every class, none in two splits."""
    _, targets = source()
    rng = np.random.default_rng([seed, GLYPHS])
    parts: dict[Split, list[Labels]] = {split: [] for split in SPLITS}
    for digit in range(CLASSES):
        indices = rng.permutation(np.flatnonzero(targets == digit))
        train_end = round(SHARES["train"] * len(indices))
        val_end = train_end + round(SHARES["val"] * len(indices))
        for split, part in zip(SPLITS, np.split(indices, [train_end, val_end]), strict=True):
            parts[split].append(part)
    return {split: np.concatenate(part).astype(np.int64) for split, part in parts.items()}


def _sequence(split: Split, count: int, seed: int) -> tuple[Labels, Labels]:
    """Glyph and label of each image: every ten images have every class, and a class goes round its glyphs."""
    _, targets = source()
    own = split_glyphs(seed)[split]
    rng = np.random.default_rng([seed, ORDER, SPLITS.index(split)])
    labels = np.concatenate([rng.permutation(CLASSES) for _ in range(-(-count // CLASSES))])[:count].astype(np.int64)
    glyphs = np.empty(count, dtype=np.int64)
    for digit in range(CLASSES):
        places = np.flatnonzero(labels == digit)
        glyphs[places] = np.resize(own[targets[own] == digit], len(places))
    return glyphs, labels


def _compose(rng: np.random.Generator, maps: UInt8, others: UInt8, knobs: Knobs) -> UInt8:
    """Images (B, 3, S, S) of the glyphs whose maps (B, M, M) are given, with fragments of the others as clutter."""
    count = len(maps)
    grey = rng.integers(40, 216, (count, 1))
    ground = np.clip(grey + rng.integers(-knobs.tint, knobs.tint + 1, (count, 3)), 0, 255).astype(np.int16)
    second = contrasting(rng, ground, rng.integers(*knobs.texture, count), knobs.tint)
    texture = smooth(rng.integers(0, FULL + 1, (count, 5, 5)), SIZE)
    canvas = mix(ground, second, texture)
    middle = ((ground + second) // 2).astype(np.int16)
    for number in range(knobs.fragments[1]):
        shown = rng.integers(knobs.fragments[0], knobs.fragments[1] + 1, count) > number
        colour = contrasting(rng, middle, rng.integers(*knobs.fragment_contrast, count), knobs.tint)
        blend(canvas, colour[:, :, None, None], _fragment(rng, others, count, knobs) * shown[:, None, None])
    for _ in range(knobs.strokes):
        _stroke(rng, canvas, middle, knobs)
    ink = contrasting(rng, middle, rng.integers(*knobs.contrast, count), knobs.tint)
    blend(canvas, ink[:, :, None, None], _glyph(rng, maps, knobs))
    for _ in range(knobs.front_strokes):
        _stroke(rng, canvas, middle, knobs)
    return add_noise(rng, canvas, rng.integers(*knobs.noise, count).astype(np.int16))


def _stroke(rng: np.random.Generator, canvas: Int16, ground: Int16, knobs: Knobs) -> None:
    """Draw one straight stroke on each image, in place."""
    count = len(canvas)
    coverage = segment(
        rng.uniform(0, SIZE, (count, 2)),
        rng.uniform(0, np.pi, count),
        rng.uniform(*knobs.stroke_length, count),
        rng.uniform(*knobs.stroke_width, count),
        SIZE,
    )
    colour = contrasting(rng, ground, rng.integers(*knobs.fragment_contrast, count), knobs.tint)
    blend(canvas, colour[:, :, None, None], coverage)


def _glyph(rng: np.random.Generator, maps: UInt8, knobs: Knobs) -> Int16:
    """Coverage (B, S, S) of the glyphs, scaled, turned, and placed where all of each is inside."""
    count = len(maps)
    size = rng.uniform(*knobs.glyph_size, count)
    angle = np.deg2rad(rng.uniform(-knobs.rotation, knobs.rotation, count))
    reach = size / 2 * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))
    centre = reach[:, None] + rng.random((count, 2)) * (SIZE - 2 * reach[:, None])
    return _place(maps, centre, size, angle)


def _fragment(rng: np.random.Generator, others: UInt8, count: int, knobs: Knobs) -> Int16:
    """Coverage (B, S, S) of pieces, a half or a quarter, of randomly chosen glyphs."""
    pieces = others[rng.integers(0, len(others), count)] * _windows()[rng.integers(0, len(_windows()), count)]
    size = rng.uniform(*knobs.fragment_size, count)
    return _place(pieces, rng.uniform(0, SIZE, (count, 2)), size, rng.uniform(-np.pi, np.pi, count))


def _place(
    maps: UInt8, centre: npt.NDArray[np.float64], size: npt.NDArray[np.float64], angle: npt.NDArray[np.float64]
) -> Int16:
    """Coverage (B, S, S) of the maps (B, M, M), each `size` pixels a side, turned by `angle` about its centre (x, y)."""
    step = (MAP - 2 * CELL) / size * (1 << POINT)
    pixels = np.arange(SIZE) - centre[:, :, None]
    cosine, sine = (step * np.cos(angle))[:, None], (step * np.sin(angle))[:, None]
    row = _positions(cosine * pixels[:, 1], -sine * pixels[:, 0])
    row *= MAP
    row += _positions(sine * pixels[:, 1], cosine * pixels[:, 0])
    row += (np.arange(len(maps)) * MAP * MAP)[:, None, None]
    return maps.reshape(-1).take(row).astype(np.int16)


def _positions(down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Map coordinates (B, S, S) from their parts along the two axes, held inside the map, whose rim is empty."""
    middle = (MAP << POINT) // 2
    position = np.rint(down + middle).astype(np.int64)[:, :, None] + np.rint(across).astype(np.int64)[:, None, :]
    position >>= POINT
    return position.clip(0, MAP - 1, out=position)


@cache
def source() -> tuple[npt.NDArray[np.float64], Labels]:
    """The glyphs (1797, 8, 8), from 0 to 16, and their digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


@cache
def _maps() -> UInt8:
    """Coverage (1797, M, M) of the glyphs, enlarged by cubic convolution (Keys 1981), exact in binary fractions."""
    images, _ = source()
    cells = images.shape[1]
    enlarge = np.zeros((MAP, cells))
    for pixel in range(MAP):
        position = (pixel + 0.5) / CELL - 1.5
        for cell in range(cells):
            enlarge[pixel, cell] = _cubic(abs(position - cell))
    coverage = enlarge @ images @ enlarge.T * (FULL / 16)
    return np.clip(np.rint(1.5 * coverage - 0.2 * FULL), 0, FULL).astype(np.uint8)  # steeper: ink with an edge


def _cubic(distance: float) -> float:
    """The kernel of cubic convolution with a = -1/2."""
    if distance < 1:
        return 1.5 * distance**3 - 2.5 * distance**2 + 1
    return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2 if distance < 2 else 0.0


@cache
def _windows() -> UInt8:
    """Masks (8, M, M) of 0 and 1: four halves and four quarters of a map."""
    low = np.arange(MAP) < MAP // 2
    every = np.ones(MAP, dtype=bool)
    halves = [(every, low), (every, ~low), (low, every), (~low, every)]
    quarters = [(low, low), (low, ~low), (~low, low), (~low, ~low)]
    return np.stack([np.outer(down, across) for down, across in halves + quarters]).astype(np.uint8)
