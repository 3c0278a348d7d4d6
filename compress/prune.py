"""A trained ViT made cheaper by a few hundred images without labels: heads, widths of queries and values, neurons, whole blocks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.adapters import from_module
from compress.knapsack import Group, solve
from compress.slicing import BlockSize, Plan, plan_block, shrink, size_of, weights_of
from compress.statistics import BlockMoments, collect
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec
from search_spaces.errors import InputError
from search_spaces.spaces.remains import check_plain, key_widths, neurons, widths
from search_spaces.states import State, Tokens

__all__ = ["BudgetTooSmall", "Cost", "Macs", "Prunable", "Pruned", "prepare", "prune"]

BALANCES = (0.5, 1.0, 2.0)  # times what neurons are said to lose against attention, in the candidates that are run
TELLING = 0.05  # share of an output that is lost where divergences are well above rounding and far from their limit
NOTHING = 1e-9  # a share that is none
IMAGES = 256  # that the candidates are compared on at most


class BudgetTooSmall(InputError):
    """Not even the cheapest network fits; `cheapest` is what it costs."""

    def __init__(self, budget: float, cheapest: float) -> None:
        super().__init__(
            f"the cheapest network of these blocks costs {cheapest:.6g}, above the budget of {budget:.6g}; raise it"
        )
        self.cheapest = cheapest


class Cost(Protocol):
    """What a network costs, block by block: MACs, or milliseconds of a table."""

    def total(self, arch: Arch) -> float:
        """Of the whole network."""

    def block(self, spec: BlockSpec, state: State) -> float:
        """Of one block; with a constant they add up to the total."""


class Macs:
    """Multiply-accumulates of one image."""

    def total(self, arch: Arch) -> float:
        return float(sum(spec.macs(state) for spec, state in arch.steps()))

    def block(self, spec: BlockSpec, state: State) -> float:
        return float(spec.macs(state))


@dataclass(frozen=True)
class Pruned:
    """What is left of a network."""

    arch: Arch
    weights: dict[str, Tensor]
    cost: float
    dense_cost: float
    divergence: float  # mean Kullback-Leibler divergence from the dense network's class probabilities, on the images
    sizes: Mapping[int, BlockSize | None]  # of the dense network's blocks, by position; None where one is left out


@dataclass(frozen=True)
class _Dense:
    """The network before anything is removed, and what is known of it."""

    arch: Arch
    weights: Mapping[str, Tensor]
    moments: Mapping[int, BlockMoments]
    plans: Mapping[int, Plan]
    images: Tensor
    scores: Tensor  # of the images

    def shrunk(self, sizes: Mapping[int, BlockSize | None]) -> tuple[Arch, dict[str, Tensor]]:
        return shrink(self.arch, self.weights, self.moments, self.plans, sizes)

    def divergence(self, sizes: Mapping[int, BlockSize | None]) -> float:
        """Mean over the images of how far the class probabilities are from the dense network's."""
        arch, weights = self.shrunk(sizes)
        network = arch.build().eval()
        network.load_state_dict(weights)
        found = _scores(network, self.images)
        if self.features:
            return float((found - self.scores).square().sum() / self.scores.square().sum())
        return float(F.kl_div(found.log_softmax(1), self.scores.log_softmax(1), reduction="batchmean", log_target=True))

    @property
    def features(self) -> bool:
        """Whether the network is an encoder, whose features are compared in place of class probabilities."""
        return getattr(self.arch.blocks[-1], "classes", None) == 0


@torch.no_grad()
def _scores(network: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, batch)])


def prune(
    model: nn.Module,
    cost: Cost,
    budget: float,
    data: Iterable[Any],
    *,
    images: int = IMAGES,
    progress: Callable[[str], None] = lambda what: None,
) -> Pruned:
    """The network of least divergence from `model` that costs at most `budget`; nothing is trained.

    What making a part smaller loses is told by second moments of activations (`compress.reduction`) and, for each part of each
    block, by how far the class probabilities move when it alone is made smaller. Sizes are the exact optimum of the sum of
    these losses; a few such optima, with neurons weighted against attention, are run, and the best of them is returned.

    Args:
        model: dense, as `from_module` takes it.
        cost: of blocks and networks.
        budget: in its unit.
        data: batches of images (B, channels, H, W), normalised as the model wants them, or tuples that begin with them; no labels.
        images: how many of them candidates are compared on at most; moments are of all.
        progress: is told what is done next.

    Raises:
        InputError: no plain ViT, no images or other sizes of them, or weights or scores that are not finite.
        BudgetTooSmall: no choice fits.
    """
    return prepare(model, cost, data, images=images, progress=progress).within(budget)


def prepare(
    model: nn.Module,
    cost: Cost,
    data: Iterable[Any],
    *,
    images: int = IMAGES,
    progress: Callable[[str], None] = lambda what: None,
) -> "Prunable":
    """What `prune` learns of a model before a budget is named: the dear part, for several budgets made once.

    Raises:
        InputError: as `prune`.
    """
    arch, weights = from_module(model)
    try:
        check_plain(arch)
    except ValueError as error:
        raise InputError(f"this network cannot be pruned: {error}") from error
    positions = [position for position, spec in enumerate(arch.blocks) if isinstance(spec, MB3D)]
    batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in data]
    wanted = (arch.channels, arch.image_size, arch.image_size)
    if not batches or any(tuple(batch.shape[1:]) != wanted for batch in batches):
        found = f"{tuple(batches[0].shape)}" if batches else "none"
        raise InputError(f"calibration needs batches of images (B, {', '.join(map(str, wanted))}), got {found}")
    progress("statistics")
    dense = _measured(arch, weights, batches, images)
    groups, without, forms = _choices(dense, cost, positions, progress)
    return Prunable(dense, cost, positions, groups, without, forms)


@dataclass(frozen=True)
class Prunable:
    """A network of which it is known what each way of making it smaller costs and loses."""

    dense: _Dense
    cost: Cost
    positions: Sequence[int]
    groups: Sequence[Group]
    without: Mapping[int, float]
    forms: "Forms"

    def within(self, budget: float) -> Pruned:
        """The network of least divergence that costs at most `budget`.

        Raises:
            BudgetTooSmall: no choice fits.
        """
        dense, arch = self.dense, self.dense.arch
        dense_cost = self.cost.total(arch)
        if budget >= dense_cost:
            return Pruned(arch, dict(dense.weights), dense_cost, dense_cost, 0.0, {})
        fixed = dense_cost - sum(self.cost.block(arch.blocks[i], arch.states[i]) for i in self.positions)
        candidates: list[tuple[float, dict[int, BlockSize | None]]] = []
        for balance in BALANCES:
            weighed = [
                replace(group, losses=group.losses * (balance if i % 2 else 1.0)) for i, group in enumerate(self.groups)
            ]
            picks = solve(weighed, self.without, budget - fixed)
            if picks is None:
                kept = (float(group.costs.min()) for group in self.groups if group.block not in self.without)
                raise BudgetTooSmall(budget, fixed + sum(kept))
            sizes = _sizes(self.positions, self.forms, picks)
            if all(sizes != other for _, other in candidates):
                candidates.append((dense.divergence(sizes), sizes))
        divergence, best = min(candidates, key=lambda one: one[0])
        found, left = dense.shrunk(best)
        return Pruned(found, left, self.cost.total(found), dense_cost, divergence, best)


def _measured(arch: Arch, weights: Mapping[str, Tensor], batches: Sequence[Tensor], count: int) -> _Dense:
    network = arch.build().eval()
    network.load_state_dict(dict(weights))
    images = torch.cat(list(batches))[:count]
    scores = _scores(network, images)
    if not torch.isfinite(scores).all():
        raise InputError("the network's scores on these images are not finite; check how they are normalised")
    moments = collect(network, batches)
    plans = {}
    for position, found in moments.items():
        spec = arch.blocks[position]
        assert isinstance(spec, MB3D)
        plans[position] = plan_block(spec, weights_of(weights, position), found)
    return _Dense(arch, weights, moments, plans, images, scores)


Forms = Mapping[int, tuple[Sequence[BlockSize], Sequence[int]]]
"""By position: the sizes of attention, of which `hidden` says nothing, and the numbers of neurons."""


def _choices(
    dense: _Dense, cost: Cost, positions: Sequence[int], progress: Callable[[str], None]
) -> tuple[list[Group], dict[int, float], Forms]:
    """Two groups for each block, attention and neurons; what is lost without it; and the sizes that the forms stand for."""
    groups: list[Group] = []
    without: dict[int, float] = {}
    forms: dict[int, tuple[Sequence[BlockSize], Sequence[int]]] = {}
    for position in positions:
        progress(f"sensitivities of block {position}")
        block = _Block.of(dense, cost, position)
        sizes, attention = block.attention()
        counts, neurons = block.neurons()
        groups += [attention, neurons]
        without[position], forms[position] = dense.divergence({position: None}), (sizes, counts)
    if len(without) == len(positions):
        del without[max(without, key=lambda position: without[position])]  # one block stays
    return groups, without, forms


@dataclass(frozen=True)
class _Block:
    """What sizes of one block cost and lose."""

    position: int
    spec: MB3D
    state: Tokens
    whole: BlockSize
    plan: Plan
    cost: Cost
    dense: _Dense

    @staticmethod
    def of(dense: _Dense, cost: Cost, position: int) -> "_Block":
        spec, state = dense.arch.blocks[position], dense.arch.states[position]
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        whole = size_of(spec, state.channels)
        return _Block(position, spec, state, whole, dense.plans[position], cost, dense)

    def price(self, size: BlockSize) -> float:
        return self.cost.block(_sized(self.spec, size, self.state), self.state)

    def each(self, forms: Sequence[tuple[BlockSize, float]]) -> float:
        """Divergence for each unit of error: of the form, among these with their errors, whose error is the most telling."""
        telling = [(size, error) for size, error in forms if error > NOTHING]
        if not telling:
            return 0.0
        size, error = min(telling, key=lambda form: abs(math.log(form[1] / TELLING)))
        return self.dense.divergence({self.position: size}) / error

    def attention(self) -> tuple[list[BlockSize], Group]:
        """Its sizes, from the cheapest, none of which costs and loses no less than another."""
        whole = self.whole
        heads, queries, values = self.plan.heads.errors, self.plan.queries.mean(0), self.plan.values.mean(0)
        keys = key_widths(self.spec)
        wide, fewer = widths(whole.value_dim), range(1, whole.heads)
        by_heads = self.each([(replace(whole, heads=n), float(heads[whole.heads - n])) for n in fewer])
        by_queries = self.each([(replace(whole, key_dim=n), float(queries[n])) for n in keys[1:]])
        by_values = self.each([(replace(whole, value_dim=n), float(values[n])) for n in wide[1:]])
        found: list[tuple[float, float, BlockSize]] = []
        for count, key_dim, value_dim in product(range(1, whole.heads + 1), keys, wide):
            size = BlockSize(count, key_dim, value_dim, whole.hidden)
            lost = by_heads * float(heads[whole.heads - count]) + by_values * float(values[value_dim])
            found.append((self.price(size), lost + by_queries * float(queries[key_dim]), size))
        kept: list[tuple[float, float, BlockSize]] = []
        for price, lost, size in sorted(found, key=lambda one: one[:2]):
            if not kept or lost < kept[-1][1]:
                kept.append((price, lost, size))
        prices, losses, sizes = zip(*kept, strict=True)
        return list(sizes), Group(self.position, np.array(prices), np.array(losses))

    def neurons(self) -> tuple[list[int], Group]:
        """Its numbers of hidden neurons; what they cost is told as the difference from the whole block."""
        whole, errors = self.whole, self.plan.neurons.errors
        counts = neurons(whole.hidden)
        each = self.each([(replace(whole, hidden=n), float(errors[whole.hidden - n])) for n in counts[1:]])
        base = self.price(whole)
        costs = np.array([self.price(replace(whole, hidden=count)) - base for count in counts])
        losses = np.array([each * float(errors[whole.hidden - count]) for count in counts])
        return counts, Group(self.position, costs, losses)


def _sized(spec: MB3D, size: BlockSize, state: Tokens) -> MB3D:
    ratio = size.hidden / state.channels
    return replace(spec, heads=size.heads, key_dim=size.key_dim, value_dim=size.value_dim, ratio=ratio)


def _sizes(positions: Sequence[int], forms: Forms, picks: Sequence[int | None]) -> dict[int, BlockSize | None]:
    """What becomes of each block."""
    found: dict[int, BlockSize | None] = {}
    for number, position in enumerate(positions):
        attention, neurons = picks[2 * number], picks[2 * number + 1]
        sizes, counts = forms[position]
        found[position] = (
            None if attention is None or neurons is None else replace(sizes[attention], hidden=counts[neurons])
        )
    return found
