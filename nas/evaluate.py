"""Accuracy of a network on a split, and the batches that recalibrate BN."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data import Data, Split

__all__ = ["accuracy", "best_classes", "calibration_batches", "correct"]

BATCH = 250


@torch.no_grad()
def best_classes(model: nn.Module, data: Data, split: Split, limit: int | None = None) -> NDArray[np.int64]:
    """(images,) the class that the network scores highest, for the first `limit` images of a split in its fixed order."""
    model.eval()
    device = next(model.parameters()).device
    found = [model(images.to(device)).argmax(1).cpu() for images, _ in data.loader(split, BATCH, limit=limit)]
    return np.asarray(torch.cat(found).numpy(), dtype=np.int64)


def correct(model: nn.Module, data: Data, split: Split, limit: int | None = None) -> NDArray[np.bool_]:
    """(images,) whether the network's best class is the label, for the first `limit` images of a split in its fixed order."""
    found = best_classes(model, data, split, limit)
    return np.asarray(found == data.labels(split)[: len(found)], dtype=np.bool_)


def accuracy(model: nn.Module, data: Data, split: Split, limit: int | None = None) -> float:
    """Share of images whose best class is the label, from 0 to 1."""
    return float(correct(model, data, split, limit).mean())


def calibration_batches(data: Data, seed: int, images: int = 1024) -> list[tuple[Tensor, Tensor]]:
    """Training images drawn by `seed`, in batches, for BN statistics; fewer than `images` where there are fewer in whole batches."""
    count = min(images, data.size("train"))
    size = min(256, count)
    batches: list[tuple[Tensor, Tensor]] = []
    for batch in data.loader("train", size, seed=seed):
        left = count - len(batches) * size
        batches.append((batch[0][:left], batch[1][:left]))
        if left <= size:
            break
    return batches
