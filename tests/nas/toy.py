"""A data set that fits in a test: coloured squares whose place is the class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from nas.data.base import Data, Labels, Split
from nas.data.loading import ordered_loader
from search_spaces.blocks import MB3D
from search_spaces.spaces.hybrid import Hybrid, Stage
from search_spaces.spaces.mobile_former import MobileFormers
from search_spaces.spaces.mobile_former import Stage as MapStage
from search_spaces.spaces.mobilevit import MobileViTs
from search_spaces.spaces.vit import Vit


def toy_space(classes: int = 4) -> Hybrid:
    """Four thousand networks of 32 pixels that train in seconds."""
    stages = (Stage((8, 16), (1, 2)), Stage((8, 16), (1, 2), block=MB3D(2, 4, 8)))
    return Hybrid("hybrid_toy", 32, stages, (0, 1, 2), (1, 2), 0.5, classes)


def toy_vit(classes: int = 4) -> Vit:
    """A thousand ViTs of 32 pixels."""
    return Vit("vit_toy", (32,), 8, (16, 32), (2, 3), (1, 0.5), (8, 4), 8, (2,), (1,), (12, 8), classes)


def toy_mobilevit(classes: int = 4) -> MobileViTs:
    """Sixteen MobileViTs of 32 pixels."""
    widths = ((8,), (8,), (8, 16), (16,), (16,))
    return MobileViTs("mobilevit_toy", (32,), widths, (2,), ((8, 16), (16,)), ((1, 2), (1, 2)), classes)


def toy_mobile_former(classes: int = 4) -> MobileFormers:
    """A hundred Mobile-Formers of 32 pixels."""
    stages = (MapStage((6, 8), (0, 1)), MapStage((8, 10), (1, 2), down=False))
    return MobileFormers("mobile_former_toy", (32,), (1, 2), 8, (4,), stages, (2, 3), (8,), classes)


@dataclass(frozen=True)
class Toy(Data):
    """Four classes: in which quarter the bright square is."""

    count: int = 256

    def tensors(self, split: Split) -> TensorDataset:
        rng = np.random.default_rng(("train", "val", "test").index(split))
        labels = np.arange(self.count) % 4
        images = rng.normal(0, 0.5, (self.count, 3, 32, 32)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            top, left = 16 * (label // 2) + rng.integers(8), 16 * (label % 2) + rng.integers(8)
            image[:, top : top + 8, left : left + 8] += 1.5
        return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))

    def size(self, split: Split) -> int:
        return self.count

    def labels(self, split: Split) -> Labels:
        return np.asarray(self.tensors(split).tensors[1].numpy())

    def loader(
        self,
        split: Split,
        batch_size: int | Sequence[int],
        *,
        seed: int | None = None,
        augment: bool = False,
        limit: int | None = None,
    ) -> DataLoader[Any]:
        if not isinstance(batch_size, int):
            return ordered_loader(self.tensors(split), self.count, batch_size, seed, default_collate, 0)
        order = np.arange(self.count) if seed is None else np.random.default_rng(seed).permutation(self.count)
        return DataLoader(self.tensors(split), batch_size, sampler=order[:limit].tolist(), drop_last=seed is not None)


def toy(count: int = 256) -> Toy:
    """The data set, with `count` images in each split."""
    return Toy("toy", ("a", "b", "c", "d"), 32, (0.0,) * 3, (1.0,) * 3, count)
