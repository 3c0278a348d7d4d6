"""`kept.png`: images, and what is left of each behind every location that drops patches."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.kept import patch_tokens
from nas.data import Data
from nas.files import atomic_write
from search_spaces.arch import Network

__all__ = ["picture", "write_kept"]

IMAGES = 8  # of search-validation
SIDE = 112  # pixels that images are enlarged to at least
GREY, FAINT = 0.5, 0.15  # of dropped patches: their colour, and how much of the image shines through
GAP = 4  # pixels between images


def write_kept(network: Network, data: Data, path: Path) -> Path | None:
    """Write what `network` keeps of a few images of search-validation as PNG; None where nothing in it drops patches.

    Raises:
        InputError: the file cannot be written.
    """
    from torchvision.transforms.functional import to_pil_image

    if not network.arch.locations:
        return None
    own = data.at(network.arch.image_size)
    images = next(iter(own.loader("val", IMAGES, limit=IMAGES)))[0]
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (own.mean, own.std))
    content = io.BytesIO()
    grid = picture((images * std + mean).clamp(0, 1), patch_tokens(network, images))
    to_pil_image(grid).save(content, "PNG")
    atomic_write(path, content.getvalue())
    return path


def picture(images: Tensor, numbers: Sequence[Tensor]) -> Tensor:
    """A row for each image: the image, and then behind each location with patches that are not kept in grey, and merged ones as their mean.

    Args:
        images: (B, 3, H, W) from 0 to 1.
        numbers: of each location, the token (B, grid height, grid width) of every patch, see `compress.kept.patch_tokens`.

    Returns:
        (3, height, width) from 0 to 1.
    """
    from torchvision.utils import make_grid

    grid = numbers[0].shape[1:]
    shown = [side * -(-max(SIDE, pixels) // side) for side, pixels in zip(grid, images.shape[2:], strict=True)]
    images = F.interpolate(images, shown, mode="nearest")
    panes = [images, *(_pane(images, own) for own in numbers)]
    drawn: Tensor = make_grid(torch.stack(panes, 1).flatten(0, 1), nrow=len(panes), padding=GAP, pad_value=1.0)
    return drawn


def _pane(images: Tensor, numbers: Tensor) -> Tensor:
    """What is left of images (B, 3, H, W), whose sides are multiples of the grid's."""
    batch, rows, columns = numbers.shape
    tall, wide = images.shape[2] // rows, images.shape[3] // columns
    patches = images.reshape(batch, 3, rows, tall, columns, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    token = (numbers.flatten(1) + 1)[..., None].expand_as(patches)  # 0 for what is not kept
    none = patches.new_zeros(batch, rows * columns + 1, patches.shape[2])
    means = none.scatter_reduce(1, token, patches, "mean", include_self=False).gather(1, token)
    there = (numbers.flatten(1) >= 0)[..., None]
    left = torch.where(there, means, GREY + FAINT * (patches - GREY))
    return left.reshape(batch, rows, columns, 3, tall, wide).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
