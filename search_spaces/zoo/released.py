"""Released weights under our names: which entry of a state dict fills which place, and what does not fit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Entry", "Family", "Naming", "Normalisation", "check", "fitted", "places"]

COUNTERS = "num_batches_tracked"  # of BN: no output depends on them, so a release may lack them


@dataclass(frozen=True)
class Entry:
    """Where an entry of a release goes, and in which form it comes."""

    place: str  # the name of our weight
    lead: int = 0  # leading dimensions of 1 that ours lacks
    rows: tuple[int, int] | None = None  # the rows of our weight that it fills; None for all
    heads: int = 0  # q, k and v one after the other, each of all heads, as one head's three after the other
    scale: float = 1.0  # what its values are multiplied by

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The entry's shape in the release, given that of our weight."""
        own = ours if self.rows is None else (self.rows[1] - self.rows[0], *ours[1:])
        return (1,) * self.lead + own

    def write(self, value: Tensor, ours: Tensor) -> None:
        """Fill our weight, or its rows, with an entry of the right shape."""
        own = ours if self.rows is None else ours[self.rows[0] : self.rows[1]]
        value = value.reshape(own.shape)
        if self.heads:
            value = value.reshape(3, self.heads, -1, *value.shape[1:]).transpose(0, 1).reshape(own.shape)
        own.copy_(value * self.scale if self.scale != 1 else value)


Naming = Mapping[str, Entry]
"""One naming of a release: its entries, and where they go. Of several for the same rows, as weights that are tied, the last counts."""


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel that a model's images were normalised by."""


@dataclass(frozen=True)
class Family:
    """Networks that were published together."""

    archs: Mapping[str, Arch]
    namings: Callable[[Arch], Iterator[Naming]]
    """Every naming in which weights of such a network were released."""
    tables: tuple[str, ...] = ()
    """Last parts of the names of index tables, which a release may hold and we make ourselves."""
    normalisation: Normalisation | None = None
    """Of the images that the weights were trained on; None where it is ImageNet's, as in the data sets."""


@lru_cache(maxsize=256)
def places(arch: Arch) -> Mapping[str, tuple[int, ...]]:
    """Our weights and BN statistics of a network and their shapes, index tables left out."""
    with torch.device("meta"):
        network = arch.build()
    named = chain(network.named_parameters(), network.named_buffers())
    kept = set(network.state_dict())
    return {name: tuple(tensor.shape) for name, tensor in named if name in kept and not name.endswith(".order")}


def check(arch: Arch, naming: Naming, tables: tuple[str, ...], state: Mapping[str, Tensor]) -> str | None:
    """What of `state` does not fit the network: the first entry missing, unexpected and misshapen; None where all does."""
    ours = places(arch)
    known = {name for name in state if name in naming}
    missing = [name for name in naming if name not in known and not name.endswith(COUNTERS)]
    unexpected = [name for name in state if name not in naming and name.rpartition(".")[2] not in tables]
    misshapen = [
        f"{name} is {tuple(state[name].shape)} and should be {wanted}"
        for name, entry in naming.items()
        if name in known and tuple(state[name].shape) != (wanted := entry.shape(ours[entry.place]))
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    told = [f"{len(names)} {what}, first {names[0]}" for what, names in faults if names]
    return "; ".join(told) or None


@torch.no_grad()
def fitted(arch: Arch, naming: Naming, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of a network from a release that `check` finds no fault with.

    Raises:
        InputError: a weight holds NaN or infinity, or is no floating-point number.
    """
    found: dict[str, Tensor] = {}
    ours = places(arch)
    for name, entry in naming.items():
        if name not in state:  # a counter
            continue
        counts = name.endswith(COUNTERS)
        value = state[name].detach().cpu()
        if not counts and (value.is_quantized or not value.is_floating_point()):
            raise InputError(f"{name} is of type {value.dtype}; give weights of floating point")
        ours_of = found.setdefault(
            entry.place, torch.empty(ours[entry.place], dtype=torch.long if counts else torch.float32)
        )
        entry.write(value, ours_of)
        if not torch.isfinite(ours_of if entry.rows is None else ours_of[slice(*entry.rows)]).all():
            raise InputError(f"{name} holds NaN or infinity; these weights are broken")
    return found
