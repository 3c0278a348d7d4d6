"""Integer drawing on batches of images: what floats compute is rounded at once, so a seed gives equal pixels anywhere.

Coverage and texture are int16 from 0 to `FULL` (128): times a colour (0 to 255) they still fit int16.
Shape suffixes: B images, C channels, S pixels a side, G grid cells a side.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["FULL", "Int16", "UInt8", "add_noise", "blend", "contrasting", "mix", "segment", "smooth", "stripes"]

Int16 = npt.NDArray[np.int16]
UInt8 = npt.NDArray[np.uint8]

FULL = 128
TURN = 1024  # steps of a full circle in the tables of sines
WEIGHT = 64  # sum of the weights of an interpolation: FULL * WEIGHT**2 is exact in float32

COSINE = np.rint(FULL / 2 * (1 + np.cos(2 * np.pi * np.arange(TURN) / TURN))).astype(np.int16)


def interpolation(cells: int, size: int) -> npt.NDArray[np.float32]:
    """Weights (S, G), whole numbers with row sum `WEIGHT`, that spread a row of `cells` smoothly over `size` pixels."""
    position = np.linspace(0, cells - 1, size)
    left = np.minimum(position.astype(np.int64), cells - 2)
    right_weight = np.rint(WEIGHT / 2 * (1 - np.cos(np.pi * (position - left))))
    weights = np.zeros((size, cells), dtype=np.float32)
    weights[np.arange(size), left] = WEIGHT - right_weight
    weights[np.arange(size), left + 1] = right_weight
    return weights


def smooth(grid_BGG: npt.NDArray[np.integer], size: int) -> Int16:
    """A low-frequency texture (B, S, S) through the values (0 to `FULL`) of a coarse grid."""
    weights_SG = interpolation(grid_BGG.shape[-1], size)
    spread = weights_SG @ grid_BGG.astype(np.float32) @ weights_SG.T
    return (spread.astype(np.int32) // WEIGHT**2).astype(np.int16)


def stripes(angle_B: npt.NDArray[np.float64], waves_B: npt.NDArray[np.float64], phase_B: UInt8, size: int) -> Int16:
    """A sinusoidal texture (B, S, S): `waves` periods across the image, crests at `angle` radians."""
    step_B = TURN * waves_B / size
    pixels_S = np.arange(size)
    across = np.rint((step_B * np.cos(angle_B))[:, None] * pixels_S).astype(np.int64)
    across += 4 * phase_B[:, None].astype(np.int64)
    down = np.rint((step_B * np.sin(angle_B))[:, None] * pixels_S).astype(np.int64)
    return COSINE.take((across[:, None, :] + down[:, :, None]) & (TURN - 1))


def mix(first_BC: Int16, second_BC: Int16, texture_BSS: Int16) -> Int16:
    """The image (B, C, S, S) that runs from the first colour to the second with the texture."""
    first, second = first_BC[:, :, None, None], second_BC[:, :, None, None]
    return first + ((second - first) * texture_BSS[:, None] >> 7)


def blend(canvas_BCSS: Int16, colour: Int16, coverage_BSS: Int16) -> None:
    """Paint `colour` (anything that broadcasts to the canvas) on the canvas in place, as opaque as `coverage` says."""
    change = colour - canvas_BCSS
    change *= coverage_BSS[:, None]
    change >>= 7
    canvas_BCSS += change


def contrasting(rng: np.random.Generator, from_BC: Int16, contrast_B: npt.NDArray[np.integer], tint: int) -> Int16:
    """Colours (B, C) that differ from the given ones by `contrast` levels of lightness and up to `tint` per channel.

    The lightness goes to the side with more room, and to a random side where both have enough.
    """
    lightness_B = from_BC.mean(axis=1).astype(np.int64)
    up_B = rng.random(len(from_BC)) < 0.5
    up_B = np.where(lightness_B + contrast_B > 245, False, np.where(lightness_B - contrast_B < 10, True, up_B))
    shifted_BC = lightness_B[:, None] + np.where(up_B, contrast_B, -contrast_B)[:, None]
    colour_BC: Int16 = np.clip(shifted_BC + rng.integers(-tint, tint + 1, from_BC.shape), 0, 255).astype(np.int16)
    return colour_BC


def segment(
    centre_B2: npt.NDArray[np.float64],
    angle_B: npt.NDArray[np.float64],
    length_B: npt.NDArray[np.float64],
    width_B: npt.NDArray[np.float64],
    size: int,
) -> Int16:
    """Coverage (B, S, S) of straight strokes with soft edges; centre (x, y), length and width in pixels."""
    cosine, sine = np.cos(angle_B)[:, None], np.sin(angle_B)[:, None]
    x_BS = np.arange(size) - centre_B2[:, :1]
    y_BS = np.arange(size) - centre_B2[:, 1:]
    along_BSS = _outer_sum(cosine * x_BS, sine * y_BS)
    beside_BSS = _outer_sum(-sine * x_BS, cosine * y_BS)
    margin_BSS = np.minimum(_level(width_B) - np.abs(beside_BSS), _level(length_B) - np.abs(along_BSS))
    return np.clip(margin_BSS, 0, FULL).astype(np.int16)


def _outer_sum(across_BS: npt.NDArray[np.float64], down_BS: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Distances (B, S, S) in units of 1 / `FULL` pixel from their parts along the two axes."""
    across = np.rint(FULL * across_BS).astype(np.int32)
    return across[:, None, :] + np.rint(FULL * down_BS).astype(np.int32)[:, :, None]


def _level(extent_B: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Half an extent in pixels, and half a pixel of soft edge, in units of 1 / `FULL` pixel."""
    return np.rint(FULL * (extent_B + 1) / 2).astype(np.int32)[:, None, None]


def add_noise(rng: np.random.Generator, canvas_BCSS: Int16, strength_B: Int16) -> UInt8:
    """The canvas as uint8 with noise per pixel of a triangular distribution; standard deviation .41 `strength` levels.

    Strength is at most 128 (int16 products).
    """
    noise = rng.integers(0, 256, canvas_BCSS.shape, dtype=np.uint8).astype(np.int16)
    noise -= rng.integers(0, 256, canvas_BCSS.shape, dtype=np.uint8)
    noise *= strength_B[:, None, None, None]
    noise >>= 8
    noise += canvas_BCSS
    return noise.clip(0, 255, out=noise).astype(np.uint8)
