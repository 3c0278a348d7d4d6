"""The loader around a data set: a visiting order and random draws that depend on nothing but explicit integers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from search_spaces.errors import InputError

__all__ = ["AUGMENT", "Batch", "draws", "ordered_loader", "visible"]

Batch = tuple[torch.Tensor, torch.Tensor]

ORDER, AUGMENT = 1, 2  # what a draw is for: keeps the streams of one seed apart


class FixedOrder(Sampler[int]):
    """Visits the given indices in the given order, each time again."""

    def __init__(self, indices: list[int]) -> None:
        """Keep the indices."""
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        """The indices, in order."""
        return iter(self.indices)

    def __len__(self) -> int:
        """How many indices there are."""
        return len(self.indices)


def draws(seed: int, purpose: int, high: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Integers from 0 to `high` - 1 of a seed and a purpose."""
    return np.random.default_rng([seed, purpose]).integers(0, high, shape)


def visible(count: int, limit: int | None) -> int:
    """How many of `count` images a loader with this limit visits.

    Raises:
        InputError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of images must be 1 or more, not {limit}")
    return count if limit is None else min(count, limit)


def ordered_loader(
    dataset: Dataset[Any],
    count: int,
    batch_size: int,
    seed: int | None,
    collate: Callable[[Any], Batch],
    workers: int,
) -> DataLoader[Batch]:
    """Load the first `count` images: in order without a seed, else shuffled by it and without the last partial batch.

    Raises:
        InputError: the batch size is below 1, or a shuffled split has not one whole batch.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be 1 or more, not {batch_size}")
    if seed is not None and batch_size > count:
        raise InputError(f"a batch of {batch_size} is more than the {count} images to train on; make it smaller")
    indices = np.arange(count)
    if seed is not None:
        indices = np.random.default_rng([seed, ORDER]).permutation(count)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=FixedOrder(indices.tolist()),
        drop_last=seed is not None,
        collate_fn=collate,
        num_workers=min(workers, -(-count // batch_size)),
    )
