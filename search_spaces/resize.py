"""Images at another size."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized"]


def resized(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) as (B, C, size, size): bilinear with antialiasing, as they are where the size is right."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
