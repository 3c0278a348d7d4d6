"""What each frame offers under a budget: the least loss that its blocks can come to, bounded quickly, then solved exactly."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np

from compress.dense import Dense, Sizes
from compress.knapsack import Group, lower_bound, solve
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
    fixed: float  # cost of all that is no block of attention
    whole: float  # cost with whole blocks
    groups: Sequence[Group]
    without: Mapping[int, float]
    sizes: Mapping[
        int, tuple[Sequence[BlockSize], Sequence[int]]
    ]  # by position in the dense network: those of attention, and of neurons

    @cached_property
    def cheapest(self) -> float:
        """Cost of the cheapest choice."""
        kept = (float(group.costs.min()) for group in self.groups if group.block not in self.without)
        return self.fixed + sum(kept)

    def bound(self, budget: float) -> float:
        """What blocks lose at least, of the surrogate; infinite where nothing fits."""
        return lower_bound(self.groups, self.without, budget - self.fixed)

    def solved(self, budget: float, balance: float = 1.0) -> Sizes | None:
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
    dense: Dense, losses: Mapping[int, BlockLoss], frame: Frame, loss: float, cost: Cost, parts: Collection[str]
) -> Offer:
    """What a frame offers.

    Args:
        dense: the network.
        losses: of its blocks, by position.
        frame: of its `frames`.
        loss: what that loses with whole blocks.
        cost: of blocks and networks.
        parts: what may be made smaller.
    """
    arch = in_frame(dense.arch, frame)
    groups: list[Group] = []
    without: dict[int, float] = {}
    sizes: dict[int, tuple[Sequence[BlockSize], Sequence[int]]] = {}
    places = dict(zip(attention_blocks(dense.arch), attention_blocks(arch), strict=True))
    for number, (position, place) in enumerate(places.items()):
        price = _Price(arch, place, cost)
        chosen = sizes_in(dense.arch, number, frame, parts)
        forms, attention = _attention(
            position, losses[position], price, product(chosen.heads, chosen.key_dims, chosen.value_dims)
        )
        whole = losses[position].whole
        base = price(whole)
        costs = np.array([price(replace(whole, hidden=count)) - base for count in chosen.hidden])
        groups += [attention, Group(position, costs, np.array([losses[position].hidden(n) for n in chosen.hidden]))]
        if number not in frame.scoring and math.isfinite(losses[position].without):
            without[position] = losses[position].without
        sizes[position] = forms, chosen.hidden
    if len(without) == len(places):
        del without[max(without, key=lambda position: without[position])]  # one block stays
    total = cost.total(arch)
    wholes = sum(_Price(arch, place, cost)(losses[position].whole) for position, place in places.items())
    return Offer(frame, loss, total - wholes, total, groups, without, sizes)


@dataclass(frozen=True)
class _Price:
    """What a block costs in a frame, with the scoring of patches after it."""

    arch: Arch
    place: int
    cost: Cost

    def __call__(self, size: BlockSize) -> float:
        spec, state, after = (
            self.arch.blocks[self.place],
            self.arch.states[self.place],
            self.arch.blocks[self.place + 1],
        )
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        ratio = size.hidden / state.channels
        sized = replace(spec, heads=size.heads, key_dim=size.key_dim, value_dim=size.value_dim, ratio=ratio)
        scoring = self.cost.block(after, sized.output(state)) if isinstance(after, TokenPrune) else 0.0
        return self.cost.block(sized, state) + scoring


def _attention(
    position: int, loss: BlockLoss, price: _Price, shapes: "product[tuple[int, ...]]"
) -> tuple[list[BlockSize], Group]:
    """Sizes of attention, from the cheapest, none of which costs and loses no less than another."""
    every = [BlockSize(heads, key_dim, value_dim, loss.whole.hidden) for heads, key_dim, value_dim in shapes]
    found = sorted(((price(size), loss.attention(size), size) for size in every), key=lambda one: one[:2])
    kept: list[tuple[float, float, BlockSize]] = []
    for cost, lost, size in found:
        if not kept or lost < kept[-1][1]:
            kept.append((cost, lost, size))
    costs, lost_by, sizes = zip(*kept, strict=True)
    return list(sizes), Group(position, np.array(costs), np.array(lost_by))
