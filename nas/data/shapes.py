"""Closed radial contours r(phi) = 1 + sum of a_k cos(k phi + p_k): which ones are classes, and how they are rasterised.

A contour is a row of complex coefficients a_k exp(i p_k), k = 2 to 7. Shape suffixes: N contours, K harmonics,
T angles, B images, S pixels a side.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from nas.data.drawing import Int16

__all__ = ["TURN", "class_contours", "clutter_contours", "rasterise", "table"]

Contours = npt.NDArray[np.complex128]

HARMONICS = np.arange(2, 8)
AMPLITUDE = 0.45 / np.sqrt(HARMONICS)  # the largest of each harmonic
THINNEST = 0.15  # radius below which a contour is cut off, of the mean radius
CANDIDATES = 8  # contours drawn for every class; the one unlike all classes before it is taken
TURN = 1024  # angles in a table
PARTS = 4  # a centre lies on a grid of quarter pixels
UNIT = 32  # a radius is counted in 1 / 32 pixel
HIDDEN = -8000  # the radius of a part that is not drawn: far below every other, and its differences still fit int16


def draw(rng: np.random.Generator, count: int) -> Contours:
    """Random contours (N, K)."""
    amplitude = rng.random((count, len(HARMONICS))) * AMPLITUDE
    contours: Contours = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
    return contours


def separation(contours: Contours, others: Contours, turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far (N,) each contour is from the nearest of the others turned by any of the angles: root mean square of r."""
    nearest: npt.NDArray[np.float64] = np.full(len(contours), np.inf)
    for turn in turns:
        difference = contours[:, None] - others[None] * np.exp(1j * turn * HARMONICS)
        nearest = np.minimum(nearest, (np.abs(difference) ** 2).sum(axis=2).min(axis=1) / 2)
    distance: npt.NDArray[np.float64] = np.sqrt(nearest)
    return distance


def class_contours(classes: int, seed: int) -> Contours:
    """The contours (N, K) of the classes, kept apart within 30 degrees; with more classes the first stay the same."""
    rng = np.random.default_rng([seed, 0])
    chosen = draw(rng, 1)
    turns = np.deg2rad(np.arange(-30, 31, 6))
    while len(chosen) < classes:
        candidates = draw(rng, CANDIDATES)
        chosen = np.concatenate([chosen, candidates[[separation(candidates, chosen, turns).argmax()]]])
    return chosen


def clutter_contours(count: int, classes: Contours, rng: np.random.Generator) -> Contours:
    """Contours (N, K) that are no class's at any angle: of twice as many, those farthest from every class."""
    candidates = draw(rng, 2 * count)
    distance = separation(candidates, classes, np.deg2rad(np.arange(0, 360, 15)))
    return candidates[np.sort(np.argsort(distance, kind="stable")[count:])]


def table(contours: Contours) -> npt.NDArray[np.float64]:
    """The radius (N, T) at each angle, the mean being about 1."""
    phases = np.outer(HARMONICS, 2 * np.pi * np.arange(TURN) / TURN)
    radius = 1 + contours.real @ np.cos(phases) - contours.imag @ np.sin(phases)
    clipped: npt.NDArray[np.float64] = np.maximum(radius, THINNEST)
    return clipped


def rasterise(
    radius_BT: npt.NDArray[np.float64],
    shown_BT: npt.NDArray[np.bool_],
    centre_B2: npt.NDArray[np.float64],
    size: int,
    line_B: npt.NDArray[np.float64],
) -> Int16:
    """Coverage (B, S, S), 0 to 128, of contours with soft edges: filled, or where `line` > 0 a line of that width.

    Radius, centre (x, y) and line in pixels. Only angles that are shown are drawn. The edge is exact to a quarter
    pixel. A centre is inside the image, whose side is at most 512.
    """
    angles, radii, width = _polar(size)
    corner_B2 = PARTS * size - np.rint(PARTS * centre_B2).astype(np.int64)
    columns = (PARTS * np.arange(size) + corner_B2[:, :1])[:, None, :]
    place = (PARTS * np.arange(size) + corner_B2[:, 1:])[:, :, None] * width + columns
    level_BT = np.where(shown_BT, np.rint(UNIT * radius_BT), HIDDEN).astype(np.int16)
    index = angles.take(place).astype(np.int64)
    index += (TURN * np.arange(len(level_BT)))[:, None, None]
    margin = level_BT.reshape(-1).take(index)
    margin -= radii.take(place)
    half = np.rint(UNIT / 2 * line_B).astype(np.int16)[:, None, None]
    margin = np.where(half > 0, half - np.abs(margin), margin)
    return ((margin.clip(-UNIT // 2, UNIT // 2) + UNIT // 2) * 4).astype(np.int16)


@cache
def _polar(size: int) -> tuple[Int16, Int16, int]:
    """Angle (of `TURN`) and distance (of `UNIT`) of every offset from a centre, flat, and the length of a row."""
    offset = np.arange(-PARTS * size, PARTS * size + 1) / PARTS
    across, down = offset[None, :], offset[:, None]
    angle = np.rint(np.arctan2(down, across) * (TURN / (2 * np.pi))).astype(np.int64) % TURN
    radius = np.rint(UNIT * np.sqrt(across**2 + down**2))
    return angle.astype(np.int16).reshape(-1), radius.astype(np.int16).reshape(-1), len(offset)
