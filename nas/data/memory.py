"""Data sets that fit in memory: uint8 images, augmented, normalised and resized a batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.utils.data import DataLoader, Dataset

from nas.data.base import Data, Labels, Split
from nas.data.cache import Images, cached
from nas.data.loading import AUGMENT, Batch, draws, ordered_loader, visible
from nas.files import cache_dir
from search_spaces.resize import resized

__all__ = ["EmbeddedData", "GeneratedData"]

SHIFT = 4  # pixels that an augmented image moves at most, in its native size


class BatchedImages(Dataset[Batch]):
    """Serves whole batches, so that normalising costs a few passes over memory and no Python per image."""

    def __init__(self, images: Images, data: "EmbeddedData", seed: int | None) -> None:
        """Wrap images of `data`; with a seed, each is shifted by an amount that depends on the seed and its index only."""
        self.pixels, self.labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
        self.size, self.shift = data.image_size, data.shift
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        self.scale, self.offset = (1 / (255 * std)).view(3, 1, 1), (-mean / std).view(3, 1, 1)
        self.shifts: torch.Tensor | None = None
        if seed is not None:
            self.shifts = torch.from_numpy(draws(seed, AUGMENT, 2 * self.shift + 1, (len(images.labels), 2)))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        """One image (3, S, S) and its label, a scalar tensor."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The images (B, 3, S, S), normalised in their native size and then resized, and labels (B,) at the indices."""
        index = torch.tensor(indices)
        pixels = self.pixels[index]
        if self.shifts is not None:
            pixels = shifted(pixels, self.shifts[index], self.shift)
        images = pixels.float().mul_(self.scale).add_(self.offset)
        return resized(images, self.size), self.labels[index]


def shifted(pixels: torch.Tensor, shifts: torch.Tensor, most: int) -> torch.Tensor:
    """Images (B, C, S, S) moved by `shifts` - `most` (B, 2) pixels up and left, the gap filled by reflection."""
    size = pixels.shape[-1]
    mirrored = torch.arange(-most, size + most).abs()
    mirrored = torch.where(mirrored < size, mirrored, 2 * (size - 1) - mirrored)
    padded = pixels.index_select(2, mirrored).index_select(3, mirrored)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    return windows[torch.arange(len(pixels)), :, shifts[:, 0], shifts[:, 1]]


def _as_it_is(batch: Batch) -> Batch:
    """The collation of what is a batch already."""
    return batch


@dataclass(frozen=True, eq=False)
class EmbeddedData(Data):
    """Images in memory, all of one native size, given at `image_size`.

    `shift`: pixels that augmentation moves an image at most, in its native size.
    """

    native_size: int
    shift: int = SHIFT
    held: dict[Split, Images] = field(default_factory=dict, repr=False)  # what is in memory, shared with `native()`

    def native(self) -> "EmbeddedData":
        """The same images, not resized."""
        return replace(self, image_size=self.native_size)

    def images(self, split: Split) -> Images:
        """All images of the split as they are, uint8, in their native size and the fixed order."""
        return self.held[split]

    def size(self, split: Split) -> int:
        """The number of images in a split."""
        return len(self.images(split).labels)

    def labels(self, split: Split) -> Labels:
        """Class indices (N,) in the fixed order."""
        return self.images(split).labels

    def groups(self, split: Split) -> Labels | None:
        """The source (N,) each image was made from; None where every image is its own."""
        return self.images(split).groups

    def loader(
        self,
        split: Split,
        batch_size: int | Sequence[int],
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> DataLoader[Batch]:
        """Batches from memory, without workers; `augment` shifts by up to `shift` pixels. See `Data.loader`."""
        assert seed is not None or not augment, "augmentation is drawn from a seed"
        count = visible(self.size(split), limit)
        dataset = BatchedImages(self.images(split), self, seed if augment else None)
        return ordered_loader(dataset, count, batch_size, seed, _as_it_is, workers=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class GeneratedData(EmbeddedData):
    """A generated data set; a split is made, or read from the cache, when its images or labels are first asked for.

    `make(split, count)` gives the first `count` images in the native size; `folder` is the name in the cache, unlike
    that of any other content.
    """

    sizes: Mapping[Split, int]
    folder: str
    make: Callable[[Split, int], Images]

    def images(self, split: Split) -> Images:
        """All images of the split as they are, uint8, in their native size and the fixed order."""
        if split not in self.held:
            path = cache_dir() / "data" / self.folder / f"{split}-{self.sizes[split]}.npz"
            self.held[split] = cached(path, lambda: self.make(split, self.sizes[split]))
        return self.held[split]

    def size(self, split: Split) -> int:
        """The number of images in a split, which need not be made for it."""
        return self.sizes[split]
