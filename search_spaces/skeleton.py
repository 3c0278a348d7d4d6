"""Networks without storage: the modules that run on parameters handed in at every call."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.arch import Arch, Network
from search_spaces.resize import resized

__all__ = ["Stats", "average_moments", "handed_in", "skeleton"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Stats = dict[str, Tensor]  # BN buffers of a network, by their names in the network


@lru_cache(maxsize=64)
def skeleton(arch: Arch, device: torch.device, moments: bool) -> Network:
    """The network without storage for its parameters, which are handed in at every call; its index tables are its own.

    Without `moments`, BN works on the statistics of its batch. Callers set train or eval mode before every call.
    """
    with torch.device("meta"):
        network = arch.build()
    if not moments:
        _forget_moments(network)
    for part in network.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(part, name, buffer.to(device))
        for table in part.parameters(recurse=False):
            if not table.is_meta:  # a fixed one
                table.data = table.data.to(device)
    return network


def handed_in(network: Network) -> dict[str, Tensor]:
    """What a call of a skeleton hands in, by name: parameters and BN statistics, but no index tables; without storage."""
    named = chain(network.named_parameters(), network.named_buffers())
    return {name: tensor for name, tensor in named if tensor.is_meta}


@torch.no_grad()
def average_moments(arch: Arch, weights: Mapping[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Stats:
    """BN statistics of a network with the parameters `weights`, averaged over the images of `batches` (labels are not used).

    A network without BN has none, and its batches are not looked at.

    Raises:
        ValueError: there are no batches.
    """
    device = next(iter(weights.values())).device
    network = skeleton(arch, device, moments=True).eval()
    norms = {name: part for name, part in network.named_modules() if isinstance(part, BATCH_NORMS)}
    stats: Stats = {}
    if not norms:
        return stats
    for name, part in norms.items():
        stats[f"{name}.running_mean"] = torch.zeros(part.num_features, device=device)
        stats[f"{name}.running_var"] = torch.ones(part.num_features, device=device)
        stats[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=device)
    usual = {name: part.momentum for name, part in norms.items()}
    count = 0
    try:
        for part in norms.values():
            part.momentum = None  # a plain average over the batches
            part.train()
        for images, _ in batches:
            functional_call(network, {**weights, **stats}, (resized(images.to(device), arch.image_size),))
            count += 1
    finally:  # the skeleton is shared
        for name, part in norms.items():
            part.momentum = usual[name]
        network.eval()
    if not count:
        raise ValueError("recalibration needs at least one batch")
    return stats


def _forget_moments(module: nn.Module) -> None:
    """Make every BN of `module` use the statistics of its batch."""
    for part in module.modules():
        if isinstance(part, BATCH_NORMS):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
