"""What a network that drops tokens costs, as a function of how many it keeps: milliseconds or MACs, differentiable."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.token_losses import Curve, piecewise
from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec, TokenPrune
from search_spaces.states import State, Tokens

__all__ = ["Price", "curve_of"]

Price = Callable[[BlockSpec, State], float]
"""What a block costs on an input state."""


def curve_of(arch: Arch, price: Price, points: Sequence[int]) -> Curve:
    """The cost of `arch` over the patches kept at each of its locations, linear between `points`.

    The curve takes a tensor (B,) for each location and gives (B,), in the unit of `price`.

    Args:
        arch: a network with pruning locations.
        price: of one block; asked at the input states that it has with so many patches.
        points: numbers of patches, ascending, at which `price` is asked for each location; beyond them the ends go on.

    Raises:
        ValueError: the network drops nothing, or fuses or merges patches; or there are fewer than two points.
    """
    if not arch.locations:
        raise ValueError(f"network {arch.id} has no pruning location, so its cost has no curve")
    if arch.rest != "dropped":
        raise ValueError(f"patches of network {arch.id} are {arch.rest}, in fixed numbers, so its cost has no curve")
    ends = [*arch.locations[1:], len(arch.blocks) - 1]
    base = sum(price(spec, state) for spec, state in arch.steps()[: arch.locations[0] + 1])
    tables = [
        [sum(_at(price, arch, position, count) for position in range(start + 1, end + 1)) for count in points]
        for start, end in zip(arch.locations, ends, strict=True)
    ]

    def curve(counts: Sequence[Tensor]) -> Tensor:
        if len(counts) != len(tables):
            raise ValueError(f"{len(tables)} locations need as many counts, got {len(counts)}")
        total = torch.full_like(counts[0], base)
        for count, values in zip(counts, tables, strict=True):
            total = total + piecewise(count, points, values)
        return total

    return curve


def _at(price: Price, arch: Arch, position: int, patches: int) -> float:
    """The price of a block where `patches` patches reach it."""
    spec, state = arch.blocks[position], arch.states[position]
    assert isinstance(state, Tokens)
    if isinstance(spec, TokenPrune):
        spec = replace(spec, keep=min(spec.keep, patches))
    return price(spec, replace(state, count=state.prefix + patches))
