"""How good a network of a supernet is, before it is retrained."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nas.data import Data
from nas.evaluate import calibration_batches
from search_spaces import Supernet
from search_spaces.arch import Arch
from search_spaces.supernet import Stats

__all__ = ["Scorer"]


@dataclass(frozen=True)
class Scorer:
    """Search-validation accuracy with the shared weights, BN statistics recalibrated for each network."""

    supernet: Supernet
    data: Data
    seed: int
    images: int = 800  # validation images of a first look

    @cached_property
    def _calibration(self) -> list[tuple[Tensor, Tensor]]:
        return calibration_batches(self.data, self.seed, images=512)

    def recalibrated(self, arch: Arch) -> Stats:
        """The network's BN statistics on training images."""
        return self.supernet.recalibrate(arch, self._calibration)

    @torch.no_grad()
    def __call__(self, arch: Arch, images: int | None = None) -> float:
        """Accuracy from 0 to 1 on the first `images` validation images; `self.images` of them unless told."""
        stats = self.recalibrated(arch)
        limit = min(images or self.images, self.data.size("val"))
        hits = total = 0
        for batch, labels in self.data.loader("val", 250, limit=limit):
            hits += int((self.supernet(batch, arch, stats).argmax(1) == labels).sum())
            total += len(labels)
        return hits / total
