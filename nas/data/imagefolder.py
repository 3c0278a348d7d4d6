"""The user's own images, in a folder for each class, or without classes.

Layouts of `imagefolder:PATH`:

- `PATH/train/<class>/*`, `PATH/val/<class>/*` and `PATH/test/<class>/*`: the splits as they are named.
- The same without `test`: **`val` is the test split**, as ImageNet is used, and the search-validation split is held out
  of `train`: of every class 10% (5% from 100,000 images on), chosen by the seed.
- `PATH/<class>/*`: 70% train, 15% search-validation, 15% test of every class, chosen by the seed.
- Images in place of the class folders in any of these, and no folders beside them: `PATH/*`, or `PATH/train/*` and `PATH/val/*`. They
  have no labels, and are split as those of a single class.

Images may lie deeper inside a class folder. Classes are numbered in the order of their names as text, as torchvision and timm number
them (wnids of ImageNet, say); where all names are whole numbers, in the order of these: 2 before 10.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from nas.data.base import Data, Labels, Split
from nas.data.folders import Files, split_folder
from nas.data.loading import Batch, ordered_loader, seeded_globals, visible
from search_spaces.errors import InputError

__all__ = ["ImageFolderData", "UnreadableImage", "load"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # with the erasing below: DeiT's recipe (arXiv 2012.12877, table 9)
ERASING = 0.25
WORKERS = min(8, os.cpu_count() or 1)

Transform = Callable[[Image.Image], torch.Tensor]


class UnreadableImage(InputError):
    """An image that cannot be decoded, named by its path, on one line also when it was met in a worker process."""

    def __init__(self, message: str) -> None:
        """Keep the message alone: `DataLoader` hands a worker's error over as the text of its whole traceback."""
        super().__init__(message.rpartition(f"{UnreadableImage.__name__}: ")[2].strip())


class ImageFiles(Dataset[tuple[torch.Tensor, int]]):
    """Decodes and transforms one file at a time; with a seed, the draws for a file depend on the seed and its index."""

    def __init__(self, files: Files, transform: Transform, seed: int | None) -> None:
        """Keep the names; nothing is read yet."""
        self.files, self.transform, self.seed = files, transform, seed

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image (3, S, S), normalised, and its label.

        Raises:
            UnreadableImage: the file cannot be decoded.
        """
        image = decoded(self.files.paths[index])
        label = int(self.files.labels[index])
        if self.seed is None:
            return self.transform(image), label
        with seeded_globals(self.seed, index):
            return self.transform(image), label


def decoded(path: str) -> Image.Image:
    """The image in a file, as RGB.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # `convert` would clip 16 bits, not scale them
                return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
            return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImage(f"{path} cannot be read as an image ({reason}); replace or remove it") from error


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
class ImageFolderData(Data):
    """Images on disk, decoded by worker processes when they are asked for."""

    files: Mapping[Split, Files]

    def size(self, split: Split) -> int:
        """The number of images in a split."""
        return len(self.files[split].labels)

    def labels(self, split: Split) -> Labels:
        """Class indices (N,) in the fixed order; -1 where images have no labels."""
        return self.files[split].labels

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
        transform = transform_for(self.image_size, augment)
        dataset = ImageFiles(self.files[split], transform, seed if augment else None)
        return ordered_loader(dataset, count, batch_size, seed, stacked, WORKERS)


def load(path: str, image_size: int | None, seed: int) -> ImageFolderData:
    """The images under a folder, at 224 pixels unless said otherwise; the seed splits them where the folder does not.

    Raises:
        InputError: the folder is missing, fits no layout, or there are no or too few images, of a class or in all.
    """
    class_names, files = split_folder(Path(path).expanduser(), seed)
    return ImageFolderData(f"imagefolder:{path}", class_names, image_size or 224, IMAGENET_MEAN, IMAGENET_STD, files)
