"""Thresholds of pruning locations: set so that so many patches stay on average, counted, and held to a cost (AS-ViT, arXiv 2209.13802)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.token_losses import Curve
from search_spaces.arch import Arch, Network
from search_spaces.blocks.token_prune import TEMPERATURE, TokenPruneModule
from search_spaces.tokens import Chosen, unpack

__all__ = ["TOLERANCE", "Batches", "calibrate", "counts_of", "hold", "thresholds_of"]

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images (B, C, H, W) with labels, which are not used."""

TOLERANCE = 0.005  # share of the target by which `hold` may stay below it
STEPS = 20  # of the bisection, at most


def thresholds_of(network: Network, arch: Arch) -> list[nn.Parameter]:
    """The threshold of each location, a multiple of the mean score 1 / N.

    Raises:
        ValueError: `arch` drops nothing, or not by thresholds.
    """
    if arch.rest != "dropped":
        raise ValueError(
            f"patches of network {arch.id} are {arch.rest}, in fixed numbers; thresholds are for dropped ones"
        )
    parts = [network.blocks[position] for position in arch.locations]
    found = [part.threshold for part in parts if isinstance(part, TokenPruneModule) and part.threshold is not None]
    if not found or len(found) != len(parts):
        raise ValueError(f"network {arch.id} has no thresholds; `arch.keeping(adaptive=True)` has")
    return found


def calibrate(network: Network, arch: Arch, batches: Batches) -> dict[int, float]:
    """Set thresholds, one location after the other, so that over all images the mean number of kept patches is the spec's `keep`.

    The mean is met exactly unless scores are equal: those fall on the same side, the one that brings the mean nearer, and
    in doubt they are dropped. How the images are batched makes no difference. A location that keeps all keeps them for any image.

    Args:
        network: an `arch`; it ends in eval mode.
        arch: with thresholds at its locations.
        batches: at least one image.

    Returns:
        The threshold at each location's position in the network, a multiple of the mean score.

    Raises:
        ValueError: `arch` has no thresholds.
    """
    found = {}
    for number, (position, threshold) in enumerate(zip(arch.locations, thresholds_of(network, arch), strict=True)):
        part = network.blocks[position]
        assert isinstance(part, TokenPruneModule)
        scores: list[Tensor] = []
        for trace in _traces(network, batches):
            chosen = trace[number]
            flat = chosen.scores.flatten().double().cpu()
            before = trace[number - 1].counts if number else torch.full_like(chosen.counts, part.total)
            scores += unpack(flat, before.cpu())
        with torch.no_grad():
            found[position] = float(threshold.fill_(_between(scores, part.keep, part.total) * part.total))
    return found


def _between(scores: list[Tensor], keep: int, total: int) -> float:
    """The score above which `keep` patches stay on average, given those of every image."""
    # Each image keeps its best patch whatever the threshold; the others decide.
    rest = torch.cat([own.sort(descending=True).values[1:] for own in scores]).sort(descending=True).values
    wanted = min(len(scores) * (keep - 1), len(rest))
    if 0 < wanted < len(rest):
        above, least = (int(found.sum()) for found in (rest > rest[wanted], rest >= rest[wanted]))
        wanted = above if wanted - above <= least - wanted else least
    if wanted == len(rest):
        return -TEMPERATURE / total  # no score is negative; training can still move it
    upper = rest[wanted - 1] if wanted else max(own.max() for own in scores)
    return float((upper + rest[wanted]) / 2)


@torch.no_grad()
def counts_of(network: Network, batches: Batches) -> Tensor:
    """(images, locations) whole numbers: how many patches of each image a network in eval mode keeps."""
    rows = [torch.stack([one.counts for one in trace], 1) for trace in _traces(network, batches)]
    return torch.cat(rows).long().cpu()


@torch.no_grad()
def _traces(network: Network, batches: Batches) -> list[list[Chosen]]:
    """What each location did with each batch."""
    network.eval()
    device = next(network.parameters()).device
    traces: list[list[Chosen]] = []
    for images, _ in batches:
        traces.append([])
        network(images.to(device), traces[-1])
    return traces


def hold(network: Network, arch: Arch, batches: Batches, curve: Curve, target: float) -> float:
    """Raise all thresholds by one factor, the smallest that brings the mean cost over the images down to `target`.

    The cost ends within `TOLERANCE` below the target, where counts change so finely. A network that costs no more than the
    target stays as it is: a budget is an upper limit, and training has chosen what to spend. Thresholds that are not
    positive drop nothing; where costs have to come down they count as the mask's temperature, since no factor moves them.

    Args:
        network: an `arch`; it ends in eval mode.
        arch: with thresholds at its locations.
        batches: at least one image.
        curve: from the kept patches at each location to the cost.
        target: in the unit of `curve`.

    Returns:
        The mean cost that was reached.

    Raises:
        ValueError: `arch` has no thresholds, or costs more than `target` with one patch of each image.
    """
    thresholds = thresholds_of(network, arch)

    def reached(factor: float) -> float:
        with torch.no_grad():
            for threshold, start in zip(thresholds, starts, strict=True):
                threshold.fill_(start * factor)
        return float(curve([*counts_of(network, batches).T.double().contiguous()]).mean())

    starts = [float(threshold.detach()) for threshold in thresholds]
    cost = reached(1.0)
    if cost <= target:
        return cost
    starts = [start if start > 0 else TEMPERATURE for start in starts]
    low, high, step = 1.0, 1.0, 1 / 16
    most = max(part.total for part in network.modules() if isinstance(part, TokenPruneModule)) / min(starts)
    while (cost := reached(high)) > target:
        if high > most:  # every threshold is above 1, which no score is
            raise ValueError(f"network {arch.id} costs {cost:.4g} with one patch of each image, more than {target:.4g}")
        low, high, step = high, high + step, 2 * step
    for _ in range(STEPS):
        if cost >= (1 - TOLERANCE) * target:
            break
        middle = (low + high) / 2
        tried = reached(middle)
        if tried > target:
            low = middle
        else:
            high, cost = middle, tried
    return reached(high)
