"""`Supernet`: one bank of shared weights that runs every network of a space, with no state between calls."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.arch import Arch, Network
from search_spaces.space import Space

__all__ = ["Stats", "Supernet"]

Stats = dict[str, Tensor]  # BN buffers of a network, by their names in the extracted network

MOMENTS = ("running_mean", "running_var", "num_batches_tracked")


@lru_cache(maxsize=64)
def _skeleton(arch: Arch) -> Network:
    """The network without storage; its weights are handed in at every call."""
    with torch.device("meta"):
        return arch.build()


def _forget_moments(module: nn.Module) -> None:
    """Make every BN of `module` use the statistics of its batch."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None


@lru_cache(maxsize=64)
def _batch_skeleton(arch: Arch) -> Network:
    """Like `_skeleton`, with BN on batch statistics."""
    with torch.device("meta"):
        network = arch.build()
    _forget_moments(network)
    return network


class Supernet(nn.Module):
    """Shared weights of a space; which network runs is an argument.

    A network's weight is the leading part, in every dimension, of the weight with the same name in its slot. The
    forward pass runs the very module that `extract` gives, on views of the bank, so the two cannot differ.
    """

    def __init__(self, space: Space) -> None:
        """Fresh weights for the largest block of every slot."""
        super().__init__()
        self.space = space
        self.bank = nn.ModuleDict({_name(slot): spec.build(state) for slot, (spec, state) in space.bank.items()})
        _forget_moments(self.bank)

    def weights(self, arch: Arch) -> dict[str, Tensor]:
        """The parameters and fixed buffers of a network as views of the bank, by their names in the network.

        Raises:
            ValueError: a block of `arch` is larger than its slot, or has no slot.
        """
        weights: dict[str, Tensor] = {}
        skeleton = _batch_skeleton(arch)
        for position, (slot, block) in enumerate(zip(self.space.slots(arch), skeleton.blocks, strict=True)):
            if _name(slot) not in self.bank:
                raise ValueError(f"network {arch.id} needs the slot {slot}, which space {self.space.name} lacks")
            shared = {**dict(self.bank[_name(slot)].named_parameters()), **dict(self.bank[_name(slot)].named_buffers())}
            for name, wanted in (*block.named_parameters(), *block.named_buffers()):
                view = shared[name][tuple(slice(length) for length in wanted.shape)]
                if view.shape != wanted.shape:
                    raise ValueError(
                        f"{slot}.{name} of network {arch.id} is {tuple(wanted.shape)}, larger than the bank's"
                    )
                weights[f"blocks.{position}.{name}"] = view
        return weights

    def forward(self, x: Tensor, arch: Arch, stats: Stats | None = None) -> Tensor:
        """Logits (B, classes) of network `arch` for images (B, C, H, W); without `stats`, BN uses the batch's own."""
        if stats is None:
            logits: Tensor = functional_call(_batch_skeleton(arch).train(self.training), self.weights(arch), (x,))
        else:
            logits = functional_call(_skeleton(arch).eval(), {**self.weights(arch), **stats}, (x,))
        return logits

    @torch.no_grad()
    def recalibrate(self, arch: Arch, batches: Iterable[tuple[Tensor, Tensor]]) -> Stats:
        """BN statistics of a network, averaged over the images of `batches` (labels are not used).

        Raises:
            ValueError: there are no batches.
        """
        skeleton, weights = _skeleton(arch).eval(), self.weights(arch)
        stats: Stats = {}
        norms = [(name, part) for name, part in skeleton.named_modules() if isinstance(part, nn.BatchNorm2d)]
        device = next(self.parameters()).device
        for name, part in norms:
            stats[f"{name}.running_mean"] = torch.zeros(part.num_features, device=device)
            stats[f"{name}.running_var"] = torch.ones(part.num_features, device=device)
            stats[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=device)
            part.momentum = None  # a plain average over the batches
            part.train()
        count = 0
        for images, _ in batches:
            functional_call(skeleton, {**weights, **stats}, (images.to(device),))
            count += 1
        skeleton.eval()
        if not count:
            raise ValueError("recalibration needs at least one batch")
        return stats

    def extract(self, arch: Arch, stats: Stats) -> Network:
        """The network alone, with its own copy of the weights, in eval mode."""
        network = arch.build()
        own = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in {**self.weights(arch), **stats}.items() if name in own})
        return network.eval()


def _name(slot: str) -> str:
    """Module names cannot hold dots."""
    return slot.replace(".", "_")
