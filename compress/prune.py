"""A trained ViT made cheaper by a few hundred images without labels: its blocks, their parts, patches, image size and embedding, chosen jointly."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.adapters import from_module
from compress.calibration import taken
from compress.dense import Dense, Framed, Sizes, Statistics, compared, examined, network_of, plans_of
from compress.knapsack import Floats, Limits
from compress.offers import Cost, Offer, offer
from compress.repair import repair
from compress.sensitivity import block_losses, frame_losses
from compress.statistics import collect
from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.spaces.frames import PARTS, Frame, attention_blocks, narrowable, whole_frame
from search_spaces.spaces.remains import check_plain
from search_spaces.states import State

__all__ = [
    "PARTS",
    "BudgetTooSmall",
    "Cost",
    "Macs",
    "Prunable",
    "Pruned",
    "Surrogate",
    "check_parts",
    "prepare",
    "prune",
]

BALANCES = (0.5, 2.0)  # times what neurons are said to lose against attention, in further candidates of the best frame
IMAGES = 256  # that the candidates are compared on at most
MOMENTS = 4096  # images that tell moments, so that a loader of a million ends
RUNS = 8  # frames that are run at most
HELD_OUT = 4  # of so many images one tells how strong repairs may be
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # that they are tried with: the larger, the less weights change
LEAST, MOST = 0.25, 4.0  # times what the surrogate says that blocks lose, as runs may correct it


class BudgetTooSmall(InputError):
    """Not even the cheapest network fits; `cheapest` is what it costs, by the first cost, and `costs` by each."""

    def __init__(self, budget: Limits, cheapest: Limits) -> None:
        budgets, costs = (np.ravel(figures).tolist() for figures in (budget, cheapest))
        over = [number for number, figures in enumerate(zip(costs, budgets, strict=True), 1) if figures[0] > figures[1]]
        which = f" by number {' and '.join(map(str, over))}" if len(costs) > 1 and over else ""
        super().__init__(
            f"the cheapest network of these blocks costs {_listed(costs)}, above the budget of {_listed(budgets)}{which}; raise it"
        )
        self.cheapest: float = costs[0]
        self.costs: tuple[float, ...] = tuple(costs)


def _listed(figures: Sequence[float]) -> str:
    return " and ".join(f"{one:.6g}" for one in figures)


class Macs:
    """Multiply-accumulates of one image."""

    def total(self, arch: Arch) -> float:
        return float(sum(spec.macs(state) for spec, state in arch.steps()))

    def block(self, spec: BlockSpec, state: State) -> float:
        return float(spec.macs(state))


@dataclass(frozen=True)
class Surrogate:
    """What the sum of losses, by which sizes were chosen, said of a network."""

    promised: (
        float  # what the chosen frame loses with its optimum: the least of its sizes, before runs corrected the sum
    )
    scale: float  # what runs corrected blocks' losses by
    runs: int  # frames whose optimum was run


@dataclass(frozen=True)
class Pruned:
    """What is left of a network."""

    arch: Arch
    weights: dict[str, Tensor]
    cost: float  # by the first of several costs, as the next is
    dense_cost: float
    divergence: float  # mean Kullback-Leibler divergence from the dense network's class probabilities, on the images
    sizes: Sizes
    frame: Frame
    surrogate: Surrogate | None = None  # None where nothing was to be chosen


def prune(
    model: nn.Module,
    cost: Cost | Sequence[Cost],
    budget: float | Sequence[float],
    data: Iterable[Any],
    *,
    images: int = IMAGES,
    moments: int = MOMENTS,
    parts: Collection[str] = PARTS,
    progress: Callable[[str], None] = lambda what: None,
) -> Pruned:
    """The network of least divergence from `model` that costs at most `budget`; nothing is trained.

    What making a part smaller loses is told by second moments of activations (`compress.reduction`) and, for each part of each
    block, by how far the class probabilities move when it alone is made smaller; image size, width of the embedding and dropping of
    patches (`search_spaces.spaces.frames`) by networks of whole blocks. In each frame sizes are the exact optimum of the sum of these
    losses. The most promising are run, what that tells corrects the sums, and so on until no other frame promises more.

    Args:
        model: dense, as `from_module` takes it.
        cost: of blocks and networks; of several, such as the tables of several targets, each is kept within its own budget.
        budget: in its unit; as many as there are costs.
        data: batches of images (B, channels, H, W), normalised as the model wants them, tuples that begin with them, or dicts
            that hold them as `pixel_values`; no labels.
        images: how many of them candidates are compared on at most; of large ones as many as hold 17,000 tokens.
        moments: how many of them tell moments. Batches are taken one after the other until they hold so many, or `images` where that is
            more, and no further: those that candidates are compared on stay in memory, the others do not.
        parts: what may be made smaller, of `PARTS`.
        progress: is told what is done next.

    Raises:
        InputError: no plain ViT; no images, or such as are of other sizes, not in floating point or not finite; weights or scores that
            are not finite; `images` or `budget` is no number of them, or there are other than a budget for each cost.
        BudgetTooSmall: no choice fits.
    """
    _checked(budget, len(_costs(cost)))
    found = prepare(model, cost, data, images=images, moments=moments, parts=parts, progress=progress)
    if found.idle:
        progress(f"frames left out, as with whole blocks they cost no less than the dense network: {len(found.idle)}")
    return found.within(budget)


def prepare(
    model: nn.Module,
    cost: Cost | Sequence[Cost],
    data: Iterable[Any],
    *,
    images: int = IMAGES,
    moments: int = MOMENTS,
    parts: Collection[str] = PARTS,
    progress: Callable[[str], None] = lambda what: None,
) -> "Prunable":
    """What `prune` learns of a model before a budget is named: the dear part, for several budgets made once.

    Raises:
        InputError: as `prune`.
    """
    check_parts(parts)
    costs = _costs(cost)
    arch, weights = from_module(model)
    try:
        check_plain(arch)
    except ValueError as error:
        raise InputError(f"this network cannot be pruned: {error}") from error
    if arch.classes == 1 and not arch.encoder:
        raise InputError(
            "a network of one class cannot be pruned, as its class probabilities are the same whatever is left; give it two, or no classifier"
        )
    if images < 1:
        raise InputError(f"images must be at least 1, got {images}")
    if "width" in parts and not narrowable(arch):
        progress(
            "the embedding stays as wide as it is: it can be narrower where learned positions write it, and the norms of blocks and of a "
            "classifier alone read it"
        )
    dense = examined(arch, weights, taken(data, arch, max(images, moments)), compared(arch, images), parts, progress)
    losses = block_losses(dense, parts, progress)
    offers = [
        offer(dense, losses, frame, loss, costs, parts) for frame, loss in frame_losses(dense, parts, progress).items()
    ]
    whole = np.array([cost.total(arch) for cost in costs])
    idle = tuple(one.frame for one in offers if (one.whole >= whole).all() and one.frame != whole_frame(arch))
    return Prunable(dense, costs, [one for one in offers if one.frame not in idle], idle, progress)


def check_parts(parts: Collection[str]) -> tuple[str, ...]:
    """The parts, where all are known.

    Raises:
        InputError: one is none of `PARTS`, or there are none.
    """
    unknown = sorted({*parts} - {*PARTS})
    if unknown or not parts:
        raise InputError(f"parts to make smaller are {', '.join(PARTS)}; got {', '.join(unknown) or 'none'}")
    return tuple(parts)


def _costs(cost: Cost | Sequence[Cost]) -> tuple[Cost, ...]:
    """Each cost, where there are any."""
    found = tuple(cost) if isinstance(cost, Sequence) else (cost,)
    if not found:
        raise InputError("there is no cost to keep within a budget; give one at least")
    return found


def _checked(budget: Limits, costs: int) -> Floats:
    """The budget of each of so many costs."""
    found = np.atleast_1d(np.asarray(budget, dtype=float))
    if len(found) != costs:
        raise InputError(f"each cost has its budget: got {len(found)} for {costs} costs; give as many")
    if np.isnan(found).any():
        raise InputError(f"a budget must be a number, in the unit of the cost, got {math.nan}")
    return found


@dataclass(frozen=True)
class _Trial:
    """What a frame's optimum came to when it was run."""

    offer: Offer
    sizes: Sizes
    divergence: float  # on the first few images


@dataclass(frozen=True)
class Prunable:
    """A network of which it is known what each way of making it smaller costs and loses."""

    dense: Dense
    costs: Sequence[Cost]
    offers: Sequence[Offer]
    idle: Sequence[Frame]  # that with whole blocks cost no less than the dense network, and are never chosen
    progress: Callable[[str], None]

    @property
    def cost(self) -> Cost:
        """The first of the costs."""
        return self.costs[0]

    def cheapest(self, budget: Limits, frame: Frame | None = None) -> tuple[float, ...]:
        """What the cheapest network costs by each cost: of all frames or of one that which takes least of a budget."""
        limits = _checked(budget, len(self.costs))
        shares = 1 / np.where(limits > 0, limits, 1.0)
        found = [one.cheapest(limits) for one in self.offers if frame in (None, one.frame)]
        return tuple(min(found, key=lambda costs: float((costs * shares).max())).tolist())

    def within(self, budget: Limits, frame: Frame | None = None) -> Pruned:
        """The network of least divergence that costs at most `budget`, or by each cost at most its own, of all frames or of one.

        Raises:
            InputError: the budget is NaN, or there are other than one for each cost.
            BudgetTooSmall: no choice fits.
        """
        limits, dense = _checked(budget, len(self.costs)), self.dense
        dense_costs = [cost.total(dense.arch) for cost in self.costs]
        dense_cost = dense_costs[0]
        if (limits >= dense_costs).all():
            self.progress(
                f"the network costs {_listed(dense_costs)}, within the budget of {_listed(limits.tolist())}: it stays as it is"
            )
            return Pruned(dense.arch, dict(dense.weights), dense_cost, dense_cost, 0.0, {}, whole_frame(dense.arch))
        offers = [one for one in self.offers if frame in (None, one.frame)]
        trials, scale = self._trials(offers, limits)
        if not trials:
            raise BudgetTooSmall(limits, self.cheapest(limits, frame))
        best = min(trials, key=lambda one: one.divergence)
        self.progress(f"networks of {best.offer.frame.label}")
        surrogate = Surrogate(best.offer.promised(best.sizes), scale, len(trials))
        sizes, arch, weights = self._best(best, limits)
        weights = self._repaired(best.offer.frame, sizes, arch, weights)
        divergence = dense.divergence(arch, weights)
        cost = self.cost.total(arch)
        return Pruned(arch, weights, cost, dense_cost, divergence, sizes, best.offer.frame, surrogate)

    def _trials(self, offers: Sequence[Offer], budget: Limits) -> tuple[list[_Trial], float]:
        """The most promising frames' optima, run one after the other, until no other promises to lose less than the best.

        With it what these runs correct blocks' losses by.
        """
        bounds = {one.frame: one.bound(budget) for one in offers}
        left = {one.frame: one for one in offers if math.isfinite(bounds[one.frame])}
        trials: list[_Trial] = []
        scale = 1.0  # of what blocks lose, against what the surrogate says
        while left and len(trials) < RUNS:
            promised = {frame: one.loss + scale * bounds[frame] for frame, one in left.items()}
            frame = min(promised, key=lambda one: promised[one])
            if trials and promised[frame] >= min(one.divergence for one in trials):
                break
            chosen = left.pop(frame)
            sizes = chosen.solved(budget)
            if sizes is None:  # the bound just fits, but for rounding
                continue
            self.progress(f"running {frame.label}")
            arch, weights = self.dense.shrunk(sizes, self.dense.framed(frame))
            trials.append(_Trial(chosen, sizes, self.dense.divergence(arch, weights, first=self.dense.few)))
            told = [
                (one.divergence - one.offer.loss) / bounds[one.offer.frame] for one in trials if bounds[one.offer.frame]
            ]
            scale = min(MOST, max(LEAST, median(told))) if told else 1.0
        return trials, scale

    def _best(self, trial: _Trial, budget: Limits) -> tuple[Sizes, Arch, dict[str, Tensor]]:
        """Of a frame, the optimum with neurons weighted in several ways, and statistics of the frame's own or of the dense network."""
        dense, framed = self.dense, self.dense.framed(trial.offer.frame)
        choices = [trial.sizes]
        for balance in BALANCES:
            sizes = trial.offer.solved(budget, balance)
            choices += [sizes] if sizes is not None and sizes not in choices else []
        own = None if framed.arch == dense.arch else self._examined(framed)
        found = []
        for sizes in choices:
            for statistics in (None, own) if own is not None else (None,):
                arch, weights = dense.shrunk(sizes, framed, statistics)
                found.append((sizes, arch, weights, dense.divergence(arch, weights)))
        return min(found, key=lambda one: one[3])[:3]

    def _repaired(self, frame: Frame, sizes: Sizes, arch: Arch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with each block making up for those before it, as strongly as helps on images that this was not solved with."""
        dense = self.dense
        whole = dense.framed(frame.bare)
        left = iter(attention_blocks(arch))
        pairs = {whole.places[old]: None if size is None else next(left) for old, size in sizes.items()}
        images = resized(dense.images, arch.image_size)
        unseen = max(1, len(images) // HELD_OUT)
        if unseen == len(images) or frame.rest == "merged":  # of merged patches none is one of the dense network's
            return weights

        def solved(ridges: Sequence[float], count: int) -> dict[float, dict[str, Tensor]]:
            left = {ridge: network_of(arch, weights) for ridge in ridges}
            repair(network_of(whole.arch, whole.weights), left, pairs, images[:count])
            return {ridge: dict(network.state_dict()) for ridge, network in left.items()}

        self.progress("repair")
        tried = solved(RIDGES, min(dense.few, len(images) - unseen))
        losses = {ridge: dense.divergence(arch, own, last=unseen) for ridge, own in tried.items()}
        best = min(losses, key=lambda ridge: losses[ridge])
        return (
            solved([best], len(images))[best]
            if losses[best] < dense.divergence(arch, weights, last=unseen)
            else weights
        )

    def _examined(self, framed: Framed) -> Statistics:
        """Statistics of a frame's own network."""
        network = network_of(framed.arch, framed.weights)
        moments = collect(network, torch.split(resized(self.dense.images, framed.arch.image_size), 32))
        return moments, plans_of(framed.arch, framed.weights, moments)
