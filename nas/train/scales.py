"""Training on images of several sizes, one for each batch (MobileViT, arXiv 2110.02178, section 3.2)."""

import numpy as np

from nas.data.loading import SIDES

__all__ = ["batch_at", "scaled_batches"]


def batch_at(side: int, base_side: int, base_batch: int) -> int:
    """Images in a batch of that side: as many pixels as `base_batch` images of `base_side` have, at least one image."""
    return max(1, base_side**2 * base_batch // side**2)


def scaled_batches(
    count: int, base_side: int, base_batch: int, sides: tuple[int, ...], seed: int
) -> list[tuple[int, int]]:
    """Side and number of images of each batch, until all `count` images have come.

    A side is drawn uniformly for every batch. The last batch is whole too: together they hold `count` images or up to a
    batch more, so that the loader starts again with the epoch's first images.
    """
    images = np.array([batch_at(side, base_side, base_batch) for side in sides])
    most = -(-count // int(images.min()))  # batches, if all are of the largest side
    drawn = np.random.default_rng([seed, SIDES]).integers(0, len(sides), most)
    needed = int(np.searchsorted(np.cumsum(images[drawn]), count)) + 1
    return [(sides[index], int(images[index])) for index in drawn[:needed]]
