"""Handwritten digits as scikit-learn has them: grey, 8 x 8, 1797 in all, split by glyph like `digits64`."""

import numpy as np

from nas.data.base import SPLITS, Data, Split
from nas.data.cache import Images
from nas.data.digits64 import CLASSES, source, split_glyphs
from nas.data.memory import EmbeddedData

__all__ = ["load"]

NATIVE, USUAL = 8, 32  # pixels a side: of the glyphs, and of the images where no size is asked for
ORDER = 3  # what a generator is for; the lower numbers are those of `digits64`
MEAN, STD = (0.305,) * 3, (0.376,) * 3  # of all glyphs


def load(image_size: int | None, seed: int) -> Data:
    """The glyphs, which the seed splits just as those of `digits64`; 32 x 32 unless another size is asked for."""
    return EmbeddedData(
        name="digits",
        class_names=tuple(str(digit) for digit in range(CLASSES)),
        image_size=image_size or USUAL,
        mean=MEAN,
        std=STD,
        native_size=NATIVE,
        shift=1,
        held={split: _images(split, seed) for split in SPLITS},
    )


def _images(split: Split, seed: int) -> Images:
    """The glyphs of a split in random order; `groups` gives each one's index in `load_digits`."""
    glyphs, targets = source()
    chosen = np.random.default_rng([seed, ORDER, SPLITS.index(split)]).permutation(split_glyphs(seed)[split])
    grey = np.rint(glyphs[chosen] * (255 / 16)).astype(np.uint8)
    return Images(np.repeat(grey[:, None], 3, axis=1), targets[chosen], groups=chosen)
