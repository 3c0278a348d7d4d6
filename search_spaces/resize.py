"""Images in another size: the one resizing that data, training and teachers share."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized"]


def resized(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) -> (B, C, `size`, `size`), or of a (height, width); the very images where that is their size.

    Bilinear with antialiasing: made smaller, every pixel is a weighted mean of all that it covers.
    """
    sides = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == sides:
        return images
    return F.interpolate(images, sides, mode="bilinear", antialias=True)
