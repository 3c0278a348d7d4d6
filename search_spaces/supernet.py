"""`Supernet`: one bank of shared weights that runs every network of a space, with no state between calls."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.arch import Arch, Network
from search_spaces.blocks import BlockSpec
from search_spaces.resize import resized
from search_spaces.space import Space
from search_spaces.states import State

__all__ = ["Stats", "Supernet"]

Stats = dict[str, Tensor]  # BN buffers of a network, by their names in the extracted network


@lru_cache(maxsize=64)
def _skeleton(arch: Arch, device: torch.device, moments: bool) -> Network:
    """The network without storage for its parameters, which are handed in at every call; its index tables are its own.

    Without `moments`, BN works on the statistics of its batch.
    """
    with torch.device("meta"):
        network = arch.build()
    if not moments:
        _forget_moments(network)
    for part in network.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(part, name, buffer.to(device))
    return network


def _forget_moments(module: nn.Module) -> None:
    """Make every BN of `module` use the statistics of its batch."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None


class Supernet(nn.Module):
    """Shared weights of a space; which network runs is an argument.

    A network's weight is the leading part, in every dimension, of the weight with the same name in its slot; those that
    belong to a grid, such as position biases, are shared on equal grids alone. The forward pass runs the very module
    that `extract` gives, on views of the bank, so the two cannot differ.
    """

    def __init__(self, space: Space) -> None:
        """Fresh weights, for every slot the largest of each name."""
        super().__init__()
        self.space = space
        self.bank = nn.ParameterDict()
        for slot, variants in space.bank.items():
            for spec, state in variants:
                for key, parameter in _keyed(slot, spec, state, spec.build(state)):
                    self._keep(key, parameter)

    def _keep(self, key: str, parameter: nn.Parameter) -> None:
        """Add a weight to the bank, unless one at least as large in every dimension is there."""
        known = self.bank[key].shape if key in self.bank else None
        if known is None or all(own >= old for own, old in zip(parameter.shape, known, strict=True)):
            self.bank[key] = parameter
        elif any(own > old for own, old in zip(parameter.shape, known, strict=True)):
            raise ValueError(
                f"two blocks of {key} are {tuple(known)} and {tuple(parameter.shape)}: neither holds the other"
            )

    def weights(self, arch: Arch) -> dict[str, Tensor]:
        """The parameters of a network as views of the bank, by their names in the network.

        Raises:
            ValueError: a block of `arch` is larger than its slot, or has no slot.
        """
        weights: dict[str, Tensor] = {}
        skeleton = _skeleton(arch, self._device, moments=False)
        places = zip(self.space.slots(arch), arch.steps(), skeleton.blocks, strict=True)
        for position, (slot, (spec, state), block) in enumerate(places):
            names = [name for name, _ in block.named_parameters()]
            for name, (key, wanted) in zip(names, _keyed(slot, spec, state, block), strict=True):
                if key not in self.bank:
                    raise ValueError(f"network {arch.id} needs the weight {key}, which space {self.space.name} lacks")
                view = self.bank[key][tuple(slice(length) for length in wanted.shape)]
                if view.shape != wanted.shape:
                    raise ValueError(f"{key} of network {arch.id} is {tuple(wanted.shape)}, larger than the bank's")
                weights[f"blocks.{position}.{name}"] = view
        return weights

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Tensor, arch: Arch, stats: Stats | None = None) -> Tensor:
        """Logits (B, classes) of network `arch` for images (B, C, H, W), resized to its own; without `stats`, BN uses the batch's."""
        x = resized(x, arch.image_size)
        if stats is None:
            logits: Tensor = functional_call(
                _skeleton(arch, self._device, moments=False).train(self.training), self.weights(arch), (x,)
            )
        else:
            logits = functional_call(
                _skeleton(arch, self._device, moments=True).eval(), {**self.weights(arch), **stats}, (x,)
            )
        return logits

    @torch.no_grad()
    def recalibrate(self, arch: Arch, batches: Iterable[tuple[Tensor, Tensor]]) -> Stats:
        """BN statistics of a network, averaged over the images of `batches` (labels are not used).

        Raises:
            ValueError: there are no batches.
        """
        skeleton, weights = _skeleton(arch, self._device, moments=True).eval(), self.weights(arch)
        stats: Stats = {}
        norms = [(name, part) for name, part in skeleton.named_modules() if isinstance(part, nn.BatchNorm2d)]
        device = self._device
        for name, part in norms:
            stats[f"{name}.running_mean"] = torch.zeros(part.num_features, device=device)
            stats[f"{name}.running_var"] = torch.ones(part.num_features, device=device)
            stats[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=device)
            part.momentum = None  # a plain average over the batches
            part.train()
        count = 0
        for images, _ in batches:
            functional_call(skeleton, {**weights, **stats}, (resized(images.to(device), arch.image_size),))
            count += 1
        skeleton.eval()
        if not count:
            raise ValueError("recalibration needs at least one batch")
        return stats

    def extract(self, arch: Arch, stats: Stats) -> Network:
        """The network alone, with its own copy of the weights, in eval mode."""
        network = arch.build()
        network.load_state_dict({**network.state_dict(), **self.weights(arch), **stats})
        return network.eval()


def _keyed(slot: str, spec: BlockSpec, state: State, block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter of a block under its name in the bank: slot, name and, where it belongs to one, grid."""
    grids = spec.grid_params(state)
    for name, parameter in block.named_parameters():
        grid = f"@{grids[name]}" if name in grids else ""
        yield f"{slot}.{name}{grid}".replace(".", "/"), parameter  # names of parameters cannot hold dots
