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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nas.data.base import Labels, Split
from nas.data.folders import Files, split_folder
from nas.data.pictures import IMAGENET_MEAN, IMAGENET_STD, UNREADABLE, PictureData, as_rgb, unreadable

__all__ = ["ImageFolderData", "decoded", "load"]


def decoded(path: str) -> Image.Image:
    """The image in a file, as RGB.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True, eq=False)
class ImageFolderData(PictureData):
    """Images in files on the disk."""

    files: Mapping[Split, Files]

    def labels(self, split: Split) -> Labels:
        """Class indices (N,) in the fixed order; -1 where images have no labels."""
        return self.files[split].labels

    def picture(self, split: Split, index: int) -> Image.Image:
        return decoded(self.files[split].paths[index])


def load(path: str, image_size: int | None, seed: int) -> ImageFolderData:
    """The images under a folder, at 224 pixels unless said otherwise; the seed splits them where the folder does not.

    Raises:
        InputError: the folder is missing, fits no layout, or there are no or too few images, of a class or in all.
    """
    class_names, files = split_folder(Path(path).expanduser(), seed)
    return ImageFolderData(f"imagefolder:{path}", class_names, image_size or 224, IMAGENET_MEAN, IMAGENET_STD, files)
