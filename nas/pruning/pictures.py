"""`kept.png`: images, and what is left of each behind every location that drops patches."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.kept import kept_patches
from nas.data import Data
from nas.files import atomic_write
from search_spaces.arch import Network

__all__ = ["picture", "write_kept"]

IMAGES = 8  # of search-validation
SIDE = 112  # pixels that smaller images are enlarged to at least
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
    grid = picture((images * std + mean).clamp(0, 1), kept_patches(network, images))
    to_pil_image(grid).save(content, "PNG")
    atomic_write(path, content.getvalue())
    return path


def picture(images: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """A row for each image: the image, and then behind each location with what was dropped in grey.

    Args:
        images: (B, 3, H, W) from 0 to 1.
        masks: of each location, bool (B, grid height, grid width), true for patches that stay.

    Returns:
        (3, height, width) from 0 to 1.
    """
    from torchvision.utils import make_grid

    times = -(-SIDE // images.shape[-1])
    images = F.interpolate(images, scale_factor=times, mode="nearest")
    panes = [images]
    for mask in masks:
        stays = F.interpolate(mask[:, None].float(), images.shape[-2:], mode="nearest")
        panes.append(torch.where(stays > 0, images, GREY + FAINT * (images - GREY)))
    grid: Tensor = make_grid(torch.stack(panes, 1).flatten(0, 1), nrow=len(panes), padding=GAP, pad_value=1.0)
    return grid
