"""The loader around a data set: a visiting order and random draws that depend on nothing but explicit integers."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from search_spaces.errors import InputError

__all__ = ["AUGMENT", "MIX", "SIDES", "Batch", "at_indices", "draws", "ordered_loader", "seeded_globals", "visible"]

Batch = tuple[torch.Tensor, torch.Tensor]

ORDER, AUGMENT, MIX, SIDES = range(1, 5)  # what a draw is for: keeps the streams of one seed apart


Visited = TypeVar("Visited")


class FixedOrder(Sampler[Visited]):
    """Visits the given indices, or lists of them, in the given order, each time again."""

    def __init__(self, visits: list[Visited]) -> None:
        """Keep what is visited."""
        self.visits = visits

    def __iter__(self) -> Iterator[Visited]:
        """What is visited, in order."""
        return iter(self.visits)

    def __len__(self) -> int:
        """How many visits there are."""
        return len(self.visits)


@contextmanager
def seeded_globals(seed: int, index: int, purpose: int = AUGMENT) -> Iterator[None]:
    """Set the global generators, which timm's transforms and mixing draw from, and put them back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm draws from it
    first, second, third = (int(word) for word in np.random.SeedSequence([seed, purpose, index]).generate_state(3))
    random.seed(first)
    np.random.seed(second)  # noqa: NPY002 - timm draws from it
    torch.default_generator.manual_seed(third)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - timm draws from it
        torch.set_rng_state(states[2])


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
    batch_size: int | Sequence[int],
    seed: int | None,
    collate: Callable[[Any], Batch],
    workers: int,
) -> DataLoader[Batch]:
    """Load the first `count` images: in order without a seed, else shuffled by it and without the last partial batch.

    With a size for each batch there are these batches, and the order starts again where it ends before them.

    Raises:
        InputError: the batch size is below 1, or a shuffled split has not one whole batch.
    """
    order = np.arange(count) if seed is None else np.random.default_rng([seed, ORDER]).permutation(count)
    if not isinstance(batch_size, int):
        assert min(batch_size) > 0, "every batch has images"
        parts = np.split(np.resize(order, sum(batch_size)), np.cumsum(batch_size)[:-1])
        batches = FixedOrder([part.tolist() for part in parts])
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=min(workers, len(batches)))
    if batch_size < 1:
        raise InputError(f"the batch size must be 1 or more, not {batch_size}")
    if seed is not None and batch_size > count:
        raise InputError(f"a batch of {batch_size} is more than the {count} images to train on; make it smaller")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=FixedOrder(order.tolist()),
        drop_last=seed is not None,
        collate_fn=collate,
        num_workers=min(workers, -(-count // batch_size)),
    )


def at_indices(loader: DataLoader[Batch], indices: npt.NDArray[np.int64]) -> DataLoader[Batch]:
    """Batches of the size of another loader's, of the images at indices of its data set, in that order."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=FixedOrder(indices.tolist()),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )
