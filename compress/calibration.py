"""Images to learn from without labels: taken batch after batch, no more than are wanted, and refused where they are none."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["taken"]

PIXELS = "pixel_values"  # what Hugging Face's processors call the images of a batch


def taken(data: Iterable[Any], arch: Arch, count: int) -> Iterator[Tensor]:
    """Batches (B, channels, H, W), float32, until they hold `count` images; no further one is asked for.

    Args:
        data: batches of images, tuples that begin with them, or Hugging Face's dicts, whose `pixel_values` they are.
        arch: whose images they are.
        count: of images, at least 1.

    Raises:
        InputError: a batch is of other sizes, empty, not in floating point, not finite or a dict without images; or there is none.
    """
    wanted, seen = (arch.channels, arch.image_size, arch.image_size), 0
    needs = f"calibration needs batches of images (B, {', '.join(map(str, wanted))})"
    for number, batch in enumerate(data):
        if isinstance(batch, Mapping) and PIXELS not in batch:
            raise InputError(f"{needs}, got a dict without {PIXELS}; give them under that name, or by themselves")
        images = batch if isinstance(batch, Tensor) else batch[PIXELS if isinstance(batch, Mapping) else 0]
        if tuple(images.shape[1:]) != wanted:
            raise InputError(f"{needs}, got {tuple(images.shape)}")
        if not len(images):
            raise InputError(f"{needs}, but batch {number} has 0 images; leave it out")
        if not images.is_floating_point():
            raise InputError(
                f"{needs} in floating point, got {images.dtype}; normalise them as the model wants it, such as by "
                "(images / 255 - mean) / std"
            )
        lost = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        if lost:
            raise InputError(
                f"{lost} of the {len(images)} images of batch {number} hold NaN or infinity; leave them out, or check how they are "
                "normalised"
            )
        yield images.float()
        seen += len(images)
        if seen >= count:
            return
    if not seen:
        raise InputError(f"{needs}, got none")
