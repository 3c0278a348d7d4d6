"""Weights must be numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from search_spaces.errors import InputError

__all__ = ["check_finite"]


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        InputError: they do; the first such tensor is named.
    """
    for name, tensor in weights.items():
        lost = int((~torch.isfinite(tensor)).sum())
        if lost:
            raise InputError(
                f"{lost} of the {tensor.numel()} values of the network's {name} are NaN or infinite; restore its checkpoint"
            )
