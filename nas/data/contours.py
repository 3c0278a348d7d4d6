"""Procedural images of radial contours: drawn at any resolution, any number of classes, as many images as a claim needs."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nas.data.base import SPLITS, Labels, Split
from nas.data.cache import Images
from nas.data.drawing import FULL, Int16, UInt8, add_noise, blend, contrasting, mix, smooth, stripes
from nas.data.memory import GeneratedData
from nas.data.shapes import TURN, class_contours, clutter_contours, rasterise, table
from nas.progress import track

__all__ = ["CLASSES", "GENERATOR_VERSION", "KNOBS", "SIZES", "ContoursData", "Knobs", "generate", "load"]

GENERATOR_VERSION = 1  # raise it whenever a seed gives other images than before

Floats = npt.NDArray[np.float64]
Pair = tuple[float, float]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Knobs:
    """What makes the task hard. Pairs are the ends of a uniform draw, or where marked *, at difficulty 0 and 1."""

    scale: Pair = (0.38, 0.68)  # mean radius, of half the side
    rotation: float = 15.0  # degrees to either side
    shift: float = 0.15  # of the centre, of half the side
    contrast: Pair = (110, 60)  # * lightness of the shape against the background, levels of 255
    spread: float = 0.25  # by which a contrast is off its value at most, as a fraction
    tint: int = 30  # how far a colour's channels stray from grey
    texture: tuple[int, int] = (10, 60)  # between the two colours of a texture
    waves: Pair = (2.0, 9.0)  # periods of a stripe texture across the image
    clutter: int = 4  # contours of no class, the last of them in front of the shape
    clutter_scale: Pair = (0.2, 0.6)
    clutter_contrast: Pair = (30, 80)  # *
    clutter_line: Pair = (0.02, 0.05)  # width of an outline, of the side
    clutter_shown: Pair = (0.4, 0.8)  # part of the full turn that is drawn
    noise: Pair = (0.05, 0.15)  # * standard deviation, of the full range


KNOBS = Knobs()
CLASSES = 16
NATIVE = 64  # pixels a side, unless the data set's name says otherwise
SIZES: dict[Split, int] = {"train": 12_000, "val": 4_000, "test": 20_000}
SIZES_LARGE: dict[Split, int] = {"train": 12_000, "val": 2_000, "test": 5_000}  # at 224 pixels: 2.9 GB
CHUNK = 100  # images drawn from one generator: image i is the same however many are made
ORDER, CLUTTER, DRAW = range(1, 4)  # what a generator is for; 0 draws the classes
BANK = 256  # contours that serve as clutter in a split


@dataclass(frozen=True, eq=False)
class ContoursData(GeneratedData):
    """Contours, with the difficulty each image was drawn at."""

    def difficulty(self, split: Split) -> npt.NDArray[np.float32]:
        """How hard each image is (N,), from 0 to 1: it sets contrast, clutter and noise."""
        difficulty = self.images(split).difficulty
        assert difficulty is not None
        return difficulty


def load(image_size: int | None, seed: int, native_size: int = NATIVE) -> ContoursData:
    """The data set of a seed, which draws the classes as well as the images.

    Images are drawn with `native_size` pixels a side (at most 512), and resized where another size is asked for.
    """
    version = f"v{GENERATOR_VERSION}-{hashlib.sha256(repr(KNOBS).encode()).hexdigest()[:8]}"
    return ContoursData(
        name="contours" if native_size == NATIVE else f"contours{native_size}",
        class_names=tuple(f"contour{label:02d}" for label in range(CLASSES)),
        image_size=image_size or native_size,
        native_size=native_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        sizes=SIZES if native_size == NATIVE else SIZES_LARGE,
        folder=f"contours-{native_size}-{seed}-{version}",
        make=partial(_of_split, size=native_size, seed=seed),
    )


def _of_split(split: Split, count: int, *, size: int, seed: int) -> Images:
    return generate(CLASSES, size, count, seed, split)


def generate(classes: int, image_size: int, count: int, seed: int, split: Split, knobs: Knobs = KNOBS) -> Images:
    """The first `count` images of a split of the task with so many classes.

    Every run of `classes` images has each class once. Images of different splits come from different generators.
    """
    contours = class_contours(classes, seed)
    place = SPLITS.index(split)
    bank = clutter_contours(BANK, contours, np.random.default_rng([seed, CLUTTER, place]))
    chunks = -(-count // CHUNK)
    labels = _labels(np.random.default_rng([seed, ORDER, place]), classes, chunks * CHUNK)
    pixels = np.empty((chunks * CHUNK, 3, image_size, image_size), dtype=np.uint8)
    difficulty = np.empty(chunks * CHUNK, dtype=np.float32)
    artist = Artist(table(contours), table(bank), image_size, knobs)
    for chunk in track(range(chunks), f"making contours {split}", chunks):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        rng = np.random.default_rng([seed, DRAW, place, chunk])
        difficulty[part] = rng.random(CHUNK, dtype=np.float32)
        pixels[part] = artist.paint(rng, labels[part], difficulty[part].astype(np.float64))
    return Images(pixels[:count], labels[:count], difficulty=difficulty[:count])


def _labels(rng: np.random.Generator, classes: int, count: int) -> Labels:
    """Labels (N,) in runs that have every class once."""
    return np.concatenate([rng.permutation(classes) for _ in range(-(-count // classes))])[:count].astype(np.int64)


@dataclass(frozen=True)
class Artist:
    """Paints images of one task: the tables of radius (N, T) of classes and clutter, the side, the difficulty."""

    classes: Floats
    clutter: Floats
    size: int
    knobs: Knobs

    def paint(self, rng: np.random.Generator, labels: Labels, difficulty: Floats) -> UInt8:
        """Images (B, 3, S, S) of the labels (B,) at a difficulty (B,)."""
        count, knobs = len(labels), self.knobs
        ground = np.clip(rng.integers(50, 206, (count, 1)) + self._tint(rng, count), 0, 255).astype(np.int16)
        canvas = self._textured(rng, ground)
        for _ in range(knobs.clutter - 1):
            self._clutter(rng, canvas, ground, difficulty)
        contrast = _between(knobs.contrast, difficulty) * rng.uniform(1 - knobs.spread, 1 + knobs.spread, count)
        ink = contrasting(rng, ground, np.rint(contrast).astype(np.int64), knobs.tint)
        blend(canvas, self._textured(rng, ink), self._shape(rng, labels))
        if knobs.clutter:
            self._clutter(rng, canvas, ground, difficulty, in_front=True)
        strength = np.rint(_between(knobs.noise, difficulty) * 255 / 0.41).astype(np.int16)
        return add_noise(rng, canvas, strength)

    def _tint(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        return rng.integers(-self.knobs.tint, self.knobs.tint + 1, (count, 3))

    def _textured(self, rng: np.random.Generator, colour: Int16) -> Int16:
        """Images (B, 3, S, S) around a colour (B, 3): oriented stripes, low-frequency noise, or between the two."""
        count = len(colour)
        step = rng.integers(*self.knobs.texture, (count, 1)) + self._tint(rng, count) // 2
        grid = rng.integers(0, FULL + 1, (count, 6, 6))
        angle, waves = rng.uniform(0, 2 * np.pi, count), rng.uniform(*self.knobs.waves, count)
        wave = stripes(angle, waves, rng.integers(0, 256, count, dtype=np.uint8), self.size)
        share = np.clip(rng.integers(-64, 193, count), 0, FULL).astype(np.int16)
        noise = smooth(grid, self.size)
        texture = noise + ((wave - noise) * share[:, None, None] >> 7)
        return mix((colour - step // 2).astype(np.int16), (colour + step // 2).astype(np.int16), texture)

    def _shape(self, rng: np.random.Generator, labels: Labels) -> Int16:
        """Coverage (B, S, S) of the contours of the labels, scaled, turned and shifted."""
        count, knobs, half = len(labels), self.knobs, self.size / 2
        turn = np.rint(rng.uniform(-knobs.rotation, knobs.rotation, count) * (TURN / 360))
        radius = half * rng.uniform(*knobs.scale, count)[:, None] * _turned(self.classes[labels], turn.astype(np.int64))
        centre = half * (1 + rng.uniform(-knobs.shift, knobs.shift, (count, 2)))
        return rasterise(radius, np.ones(radius.shape, dtype=bool), centre, self.size, np.zeros(count))

    def _clutter(
        self, rng: np.random.Generator, canvas: Int16, ground: Int16, difficulty: Floats, in_front: bool = False
    ) -> None:
        """Paint on every image a part of a contour of no class, filled or as a line; in front only as a line."""
        count, knobs = len(canvas), self.knobs
        contours = _turned(self.clutter[rng.integers(0, len(self.clutter), count)], rng.integers(0, TURN, count))
        radius = self.size / 2 * rng.uniform(*knobs.clutter_scale, count)[:, None] * contours
        shown = np.arange(TURN) < TURN * rng.uniform(*knobs.clutter_shown, count)[:, None]
        line = self.size * rng.uniform(*knobs.clutter_line, count)
        line = np.where(in_front | (rng.random(count) < 0.5), line, 0)
        centre = rng.uniform(0, self.size, (count, 2))
        coverage = rasterise(radius, _turned(shown, rng.integers(0, TURN, count)), centre, self.size, line)
        contrast = np.rint(_between(knobs.clutter_contrast, difficulty)).astype(np.int64)
        colour = contrasting(rng, ground, contrast, knobs.tint)
        blend(canvas, colour[:, :, None, None], coverage)


def _between(pair: Pair, difficulty: Floats) -> Floats:
    """The value of a knob at each difficulty."""
    return pair[0] + (pair[1] - pair[0]) * difficulty


def _turned(table_BT: npt.NDArray[Value], turn_B: npt.NDArray[np.int64]) -> npt.NDArray[Value]:
    """Rows of tables over the angle, each turned by its own number of steps."""
    index = (np.arange(TURN) - turn_B[:, None]) % TURN
    return np.take_along_axis(table_BT, index, axis=1)
