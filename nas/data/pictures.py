"""Data sets of pictures of any size and format, each decoded and cut to size by worker processes when it is asked for."""

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nas.data.base import Data, Split
from nas.data.loading import Batch, ordered_loader, seeded_globals, visible
from search_spaces.errors import InputError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "UNREADABLE", "PictureData", "UnreadableImage", "as_rgb", "unreadable"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # with the erasing below: DeiT's recipe (arXiv 2012.12877, table 9)
ERASING = 0.25
WORKERS = min(8, os.cpu_count() or 1)
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
)  # what Pillow raises for an image

Transform = Callable[[Image.Image], torch.Tensor]


class UnreadableImage(InputError):
    """An image that cannot be decoded, named by where it lies, on one line also when it was met in a worker process."""

    def __init__(self, message: str) -> None:
        """Keep the message alone: `DataLoader` hands a worker's error over as the text of its whole traceback."""
        super().__init__(message.rpartition(f"{UnreadableImage.__name__}: ")[2].strip())


def unreadable(name: str, error: Exception) -> UnreadableImage:
    """The error of an image that messages call `name`."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UnreadableImage(f"{name} cannot be read as an image ({reason}); replace or remove it")


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB."""
    if image.mode.startswith("I;16"):  # `convert` would clip 16 bits, not scale them
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")


def stacked(samples: list[tuple[torch.Tensor, int]]) -> Batch:
    """A batch of images (B, 3, S, S) and labels (B,)."""
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def transform_for(image_size: int, augment: bool) -> Transform:
    """The transform of timm: resize and centre crop, or the random crops, flips, colours and erasing of training."""
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        image_size,
        is_training=augment,
        auto_augment=AUTO_AUGMENT if augment else None,
        re_prob=ERASING if augment else 0.0,
        re_mode="pixel",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return cast(Transform, transform)


@dataclass(frozen=True, eq=False)
class PictureData(Data):
    """Pictures that are decoded by worker processes when they are asked for, and normalised by ImageNet's mean and deviation."""

    @abstractmethod
    def picture(self, split: Split, index: int) -> Image.Image:
        """One image of a split, by its place in the fixed order, as RGB.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def size(self, split: Split) -> int:
        """The number of images in a split."""
        return len(self.labels(split))

    def loader(
        self,
        split: Split,
        batch_size: int | Sequence[int],
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> DataLoader[Batch]:
        """Batches by way of worker processes; `augment` is DeiT's recipe. See `Data.loader`."""
        assert seed is not None or not augment, "augmentation is drawn from a seed"
        count = visible(self.size(split), limit)
        dataset = Pictures(self, split, transform_for(self.image_size, augment), seed if augment else None)
        return ordered_loader(dataset, count, batch_size, seed, stacked, WORKERS)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Decodes and transforms one picture at a time; with a seed, the draws for a picture depend on the seed and its index."""

    def __init__(self, data: PictureData, split: Split, transform: Transform, seed: int | None) -> None:
        """Keep what tells the pictures; nothing is read yet."""
        self.data, self.split, self.transform, self.seed = data, split, transform, seed

    def __len__(self) -> int:
        """The number of images."""
        return self.data.size(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image (3, S, S), normalised, and its label.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        image = self.data.picture(self.split, index)
        label = int(self.data.labels(self.split)[index])
        if self.seed is None:
            return self.transform(image), label
        with seeded_globals(self.seed, index):
            return self.transform(image), label
