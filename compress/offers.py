"""What each frame offers under a budget: the least loss that its blocks can come to, bounded quickly, then solved exactly."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np

from compress.dense import Dense, Sizes
from compress.knapsack import Floats, Group, Limits, cheapest, lower_bound, solve
from compress.sensitivity import BlockLoss
from compress.slicing import BlockSize
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, TokenPrune
from search_spaces.spaces.frames import Frame, attention_blocks, in_frame
from search_spaces.spaces.remains import sizes_in
from search_spaces.states import State, Tokens

__all__ = ["Cost", "Offer", "offer"]


class Cost(Protocol):
    """What a network costs, block by block: MACs, or milliseconds of a table."""

    def total(self, arch: Arch) -> float:
        """Of the whole network."""

    def block(self, spec: BlockSpec, state: State) -> float:
        """Of one block; with a constant they add up to the total."""


@dataclass(frozen=True, eq=False)
class Offer:
    """The ways of making blocks smaller in a frame: for each of them two groups, attention and neurons."""

    frame: Frame
    loss: float  # of the frame with whole blocks
    fixed: Floats  # (targets,) cost of all that is no block of attention
    whole: Floats  # (targets,) cost with whole blocks
    groups: Sequence[Group]
    without: Mapping[int, float]
    sizes: Mapping[
        int, tuple[Sequence[BlockSize], Sequence[int]]
    ]  # by position in the dense network: those of attention, and of neurons

    def cheapest(self, budget: Limits) -> Floats:
        """Costs (targets,) of the cheapest choice, beside a budget; see `compress.knapsack.cheapest`."""
        return cheapest(self.groups, self.without, self.fixed, budget)

    def bound(self, budget: Limits) -> float:
        """What blocks lose at least, of the surrogate; infinite where nothing fits."""
        return lower_bound(self.groups, self.without, budget - self.fixed)

    def solved(self, budget: Limits, balance: float = 1.0) -> Sizes | None:
        """The sizes of least loss, neurons' weighted by `balance` against attention's; None where nothing fits."""
        weighed = [
            replace(group, losses=group.losses * (balance if number % 2 else 1.0))
            for number, group in enumerate(self.groups)
        ]
        picks = solve(weighed, self.without, budget - self.fixed)
        if picks is None:
            return None
        found: dict[int, BlockSize | None] = {}
        for number, (position, (sizes, counts)) in enumerate(self.sizes.items()):
            attention, neurons = picks[2 * number], picks[2 * number + 1]
            gone = attention is None or neurons is None
            found[position] = None if gone else replace(sizes[attention or 0], hidden=counts[neurons or 0])
        return found

    def promised(self, sizes: Sizes) -> float:
        """What the frame with these of its sizes loses, of the surrogate."""
        lost = self.loss
        for number, (position, (forms, counts)) in enumerate(self.sizes.items()):
            size = sizes[position]
            if size is None:
                lost += self.without[position]
                continue
            attention, neurons = self.groups[2 * number], self.groups[2 * number + 1]
            form = next(place for place, one in enumerate(forms) if replace(one, hidden=size.hidden) == size)
            lost += float(attention.losses[form] + neurons.losses[counts.index(size.hidden)])
        return lost


def offer(
    dense: Dense,
    losses: Mapping[int, BlockLoss],
    frame: Frame,
    loss: float,
    costs: Sequence[Cost],
    parts: Collection[str],
) -> Offer:
    """What a frame offers.

    Args:
        dense: the network.
        losses: of its blocks, by position.
        frame: of its `frames`.
        loss: what that loses with whole blocks.
        costs: of blocks and networks, on each target.
        parts: what may be made smaller.
    """
    arch = in_frame(dense.arch, frame)
    groups: list[Group] = []
    without: dict[int, float] = {}
    sizes: dict[int, tuple[Sequence[BlockSize], Sequence[int]]] = {}
    places = dict(zip(attention_blocks(dense.arch), attention_blocks(arch), strict=True))
    for number, (position, place) in enumerate(places.items()):
        price = _Price(arch, place, costs)
        chosen = sizes_in(dense.arch, number, frame, parts)
        forms, attention = _attention(
            position, losses[position], price, product(chosen.heads, chosen.key_dims, chosen.value_dims)
        )
        whole = losses[position].whole
        base = price(whole)
        spent = np.array([price(replace(whole, hidden=count)) - base for count in chosen.hidden])
        lost = np.array([losses[position].hidden(count) for count in chosen.hidden])
        kept = _unbeaten(spent, lost)
        groups += [attention, Group(position, spent[kept].T, lost[kept])]
        if number not in frame.scoring and math.isfinite(losses[position].without):
            without[position] = losses[position].without
        sizes[position] = forms, [chosen.hidden[at] for at in kept]
    if len(without) == len(places):
        del without[max(without, key=lambda position: without[position])]  # one block stays
    total = np.array([cost.total(arch) for cost in costs])
    wholes = [_Price(arch, place, costs)(losses[position].whole) for position, place in places.items()]
    return Offer(frame, loss, total - sum(wholes), total, groups, without, sizes)


@dataclass(frozen=True)
class _Price:
    """What a block costs in a frame, with the scoring of patches after it, on each target."""

    arch: Arch
    place: int
    costs: Sequence[Cost]

    def __call__(self, size: BlockSize) -> Floats:
        spec, state, after = (
            self.arch.blocks[self.place],
            self.arch.states[self.place],
            self.arch.blocks[self.place + 1],
        )
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        ratio = size.hidden / state.channels
        sized = replace(spec, heads=size.heads, key_dim=size.key_dim, value_dim=size.value_dim, ratio=ratio)
        steps = [(sized, state), *([(after, sized.output(state))] if isinstance(after, TokenPrune) else [])]
        return np.array([sum(cost.block(*step) for step in steps) for cost in self.costs])


def _attention(
    position: int, loss: BlockLoss, price: _Price, shapes: "product[tuple[int, ...]]"
) -> tuple[list[BlockSize], Group]:
    """Sizes of attention, from the cheapest, that are worth having."""
    every = [BlockSize(heads, key_dim, value_dim, loss.whole.hidden) for heads, key_dim, value_dim in shapes]
    costs, lost = np.array([price(size) for size in every]), np.array([loss.attention(size) for size in every])
    kept = _unbeaten(costs, lost)
    return [every[number] for number in kept], Group(position, costs[kept].T, lost[kept])


def _unbeaten(costs: Floats, lost: Floats) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Numbers, from the cheapest, of those of costs (N, targets) that no other costs no more than on every target, losing (N,) no more: of equals the first."""
    order = np.lexsort((lost, *costs.T[::-1]))  # what beats another comes before it
    figures = np.column_stack([costs, lost])[order]
    beats = (figures[None] <= figures[:, None]).all(-1)  # [one, other] whether the other beats it
    return order[~np.tril(beats, -1).any(1)]
