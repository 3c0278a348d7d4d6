"""What every data set offers: three splits of images, with labels unless the user has none, and loaders over them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

__all__ = ["SPLITS", "Data", "Labels", "Split"]

Split = Literal["train", "val", "test"]  # val is the search-validation split; test is read once, at the end
SPLITS: tuple[Split, ...] = get_args(Split)
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Data(ABC):
    """A data set with splits train, val (search-validation) and test.

    Each split has a fixed order in which the classes are mixed, so that a prefix of it is representative.
    `name` is what the user gave; its images come in `image_size`, whatever size they are kept in; `mean` and `std` per channel normalise images whose range was 0 to 1.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def classes(self) -> int:
        """The number of classes; 0 where images have no labels."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether its images have labels."""
        return self.classes > 0

    @property
    def channels(self) -> int:
        """Channels of an image: always 3."""
        return 3

    @abstractmethod
    def size(self, split: Split) -> int:
        """The number of images in a split."""

    @abstractmethod
    def labels(self, split: Split) -> Labels:
        """Class indices (N,) in the fixed order; -1 where images have no labels."""

    def at(self, image_size: int) -> "Data":
        """The same images with `image_size` pixels a side."""
        return self if image_size == self.image_size else replace(self, image_size=image_size)

    def native(self) -> "Data":
        """The same data at the size in which its images are kept; itself where they are decoded at any size."""
        return self

    def groups(self, split: Split) -> Labels | None:
        """The source (N,) each image was made from, for a clustered bootstrap; None where every image is its own."""
        return None

    @abstractmethod
    def loader(
        self,
        split: Split,
        batch_size: int | Sequence[int],
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> "DataLoader[tuple[torch.Tensor, torch.Tensor]]":
        """Batches of normalised images (B, 3, H, W), float32, and labels (B,), int64.

        Without a seed: the fixed order, every image once, the last batch may be smaller. With one: shuffled by that
        seed alone, the last partial batch dropped. To go over the loader again repeats the same order and the same
        augmentation, so an epoch asks for a loader with its own seed. `augment` needs a seed. `limit` keeps the
        first images of the fixed order only. `batch_size` may be that of each batch in turn: then there are these
        batches, and where they hold more images than there are, the order starts again. The loader holds no random state and can be sharded by `accelerate`.

        Raises:
            InputError: an image cannot be read (while iterating), or `limit` is below 1.
        """
