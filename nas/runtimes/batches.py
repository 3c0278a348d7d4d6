"""Images in batches of one size, and what a session refuses before it takes any."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.target import Target
from search_spaces.errors import InputError

__all__ = ["check_input", "in_batches"]

Images = NDArray[np.float32]


def in_batches(run: Callable[[Images], Images], images: Images, size: int) -> Images:
    """`run` on images (N, channels, H, W) in batches of `size`, the last one padded -> logits (N, classes)."""
    padded = np.concatenate([images, np.zeros((-len(images) % size, *images.shape[1:]), images.dtype)])
    return np.concatenate([run(batch) for batch in np.split(padded, len(padded) // size)])[: len(images)]


def check_input(name: str, inputs: Sequence[tuple[str, Sequence[object]]], target: Target) -> tuple[int, ...]:
    """The shape of a target's batch of images for a network of these inputs, each a name and a shape with what is open not a number.

    Raises:
        InputError: they are not one batch of images, or one of another size than the target's.
    """
    shape = list(inputs[0][1]) if len(inputs) == 1 else []
    sides = [side for side in shape[1:] if isinstance(side, int)]
    if len(shape) != 4 or len(sides) != 3:
        found = ", ".join(f"{given} {list(shape)}" for given, shape in inputs)
        raise InputError(f"{name} takes {found}; expected one input of images (batch, channels, H, W)")
    if isinstance(shape[0], int) and shape[0] != target.batch:
        raise InputError(f"{name} takes batches of {shape[0]}, target {target.name} {target.batch}; export it again")
    return (target.batch, *sides)
