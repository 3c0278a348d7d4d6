"""`Supernet`: one bank of shared weights that runs every network of a space, with no state between calls."""

from collections.abc import Container, Iterable, Iterator, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.arch import Arch, Network
from search_spaces.blocks import BlockSpec
from search_spaces.regrid import Grid, grid_of
from search_spaces.resize import resized
from search_spaces.skeleton import Stats, average_moments, skeleton
from search_spaces.space import Space
from search_spaces.states import State

__all__ = ["Stats", "Supernet"]

Step = tuple[BlockSpec, State]  # a block on its input


class Supernet(nn.Module):
    """Shared weights of a space; which network runs is an argument.

    A network's weight is the leading part, in every dimension, of the weight with the same name in its slot: of each of
    its pieces, where its block shares it in pieces, such as an attention's q, k and v. Those that belong to a grid, such
    as position biases, are shared on equal grids alone. On a grid that the bank lacks they are interpolated from those of
    the grid whose area is nearest in ratio, of two equally near the larger. The forward pass runs the very module that
    `extract` gives, on the same weights, so the two cannot differ.
    """

    def __init__(self, space: Space) -> None:
        """Fresh weights, for every slot the largest of each name."""
        super().__init__()
        self.space = space
        self.bank = nn.ParameterDict()
        self._owners: dict[str, Step] = {}  # the block that each weight is of
        for slot, variants in space.bank.items():
            for spec, state in variants:
                for name, key, parameter in _keyed(slot, spec, state, spec.build(state)):
                    self._keep(key, name, parameter, (spec, state))
        self._grids: dict[str, list[str]] = {}  # on which grids the bank has a weight
        for key in self.bank:
            stem, at, grid = key.partition("@")
            if at:
                self._grids.setdefault(stem, []).append(grid)

    def _keep(self, key: str, name: str, parameter: nn.Parameter, step: Step) -> None:
        """Add a weight to the bank, unless one at least as large in every dimension is there."""
        own = _sides(name, parameter, step)
        known = _sides(name, self.bank[key], self._owners[key]) if key in self.bank else own
        if all(new >= old for new, old in zip(own, known, strict=True)):
            self.bank[key], self._owners[key] = parameter, step
        elif any(new > old for new, old in zip(own, known, strict=True)):
            raise ValueError(f"two blocks of {key} are {known} and {own}: neither holds the other")

    def weights(self, arch: Arch) -> dict[str, Tensor]:
        """The parameters of a network by their names in it: views of the bank, and interpolations where it lacks the grid.

        Where pieces of a weight are narrower than the bank's, it is the views of them joined.

        Raises:
            ValueError: a block of `arch` is larger than its slot, or has no slot.
        """
        weights: dict[str, Tensor] = {}
        network = skeleton(arch, self._device, moments=False)
        places = zip(self.space.slots(arch), arch.steps(), network.blocks, strict=True)
        for position, (slot, (spec, state), block) in enumerate(places):
            for name, key, wanted in _keyed(slot, spec, state, block):
                shared = self._shared(key, name, wanted, (spec, state))
                if shared is None:
                    raise ValueError(f"network {arch.id} needs the weight {key}, which space {self.space.name} lacks")
                if shared.shape != wanted.shape:
                    raise ValueError(f"{key} of network {arch.id} is {tuple(wanted.shape)}, larger than the bank's")
                weights[f"blocks.{position}.{name}"] = shared
        return weights

    def _shared(self, key: str, name: str, wanted: Tensor, step: Step) -> Tensor | None:
        """What the bank has for a block's parameter of the shape of `wanted`, smaller where its own is; None where it has none."""
        spec, state = step
        if key not in self.bank:
            table = self._interpolated(key, name, spec, state)
            return None if table is None else _leading(table, wanted)
        whole, (owner, its) = self.bank[key], self._owners[key]
        plain, pieces = _leading(whole, wanted), spec.split(name, wanted, state)
        if pieces.get(name) is wanted:  # shared in one piece, as it is
            return plain

        def parts(shared: Tensor) -> dict[str, Tensor]:
            return {piece: _leading(part, pieces[piece]) for piece, part in owner.split(name, shared, its).items()}

        if plain.shape == wanted.shape:  # no copy where the pieces lie in the leading part as they do in the whole
            found, lying = parts(whole.detach()), spec.split(name, plain.detach(), state)
            if all(_same_view(part, lying[piece]) for piece, part in found.items()):
                return plain
        return spec.join(name, parts(whole), state)

    def _interpolated(
        self, key: str, name: str, spec: BlockSpec, state: State, among: Container[str] | None = None
    ) -> Tensor | None:
        """The weight `key`, a block's parameter `name`, from the nearest grid in the bank; None where it is on none.

        With `among`, of these weights alone.
        """
        stem, _, grid = key.partition("@")
        grids = [other for other in self._grids.get(stem, ()) if among is None or f"{stem}@{other}" in among]
        if not grids:
            return None
        nearest = min(grids, key=lambda other: _distance(grid_of(other), grid_of(grid)))
        return spec.regrid(name, self.bank[f"{stem}@{nearest}"], state, grid_of(nearest))

    @torch.no_grad()
    def absorb(self, arch: Arch, weights: Mapping[str, Tensor]) -> None:
        """Take a network's own weights, by their names in it, as the shared ones; on grids that it lacks, its interpolated.

        What it does not have, such as the weights of another mixer, stays as it is.

        Raises:
            ValueError: `arch` is none of the space's, or is on a grid that the bank lacks.
        """
        taken: set[str] = set()
        for slot, (position, (spec, state)) in zip(self.space.slots(arch), enumerate(arch.steps()), strict=True):
            for name, key, _ in _keyed(slot, spec, state, _weightless(spec, state)):
                if key not in self.bank:
                    raise ValueError(f"network {arch.id} needs the weight {key}, which space {self.space.name} lacks")
                owner, its = self._owners[key]
                shared = owner.split(name, self.bank[key], its)
                for piece, own in spec.split(name, weights[f"blocks.{position}.{name}"], state).items():
                    _leading(shared[piece], own).copy_(own)
                taken.add(key)
        for slot, variants in self.space.bank.items():
            for spec, state in variants:
                for name, key, _ in _keyed(slot, spec, state, _weightless(spec, state)):
                    if key not in taken and (fitted := self._interpolated(key, name, spec, state, taken)) is not None:
                        self.bank[key].copy_(fitted)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Tensor, arch: Arch, stats: Stats | None = None) -> Tensor:
        """Logits (B, classes) of network `arch` for images (B, C, H, W), resized to its own; without `stats`, BN uses the batch's."""
        x = resized(x, arch.image_size)
        if stats is None:
            logits: Tensor = functional_call(
                skeleton(arch, self._device, moments=False).train(self.training), self.weights(arch), (x,)
            )
        else:
            logits = functional_call(
                skeleton(arch, self._device, moments=True).eval(), {**self.weights(arch), **stats}, (x,)
            )
        return logits

    def recalibrate(self, arch: Arch, batches: Iterable[tuple[Tensor, Tensor]]) -> Stats:
        """BN statistics of a network, averaged over the images of `batches` (labels are not used).

        Raises:
            ValueError: there are no batches.
        """
        return average_moments(arch, self.weights(arch), batches)

    def extract(self, arch: Arch, stats: Stats) -> Network:
        """The network alone, with its own copy of the weights, in eval mode."""
        network = arch.build()
        network.load_state_dict({**network.state_dict(), **self.weights(arch), **stats})
        return network.eval()


def _weightless(spec: BlockSpec, state: State) -> nn.Module:
    """The block without storage, for its names and shapes."""
    with torch.device("meta"):
        return spec.build(state)


def _keyed(slot: str, spec: BlockSpec, state: State, block: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Each parameter of a block with its name in it and in the bank: slot, name and, where it belongs to one, grid."""
    grids = spec.grid_params(state)
    for name, parameter in block.named_parameters():
        grid = f"@{grids[name]}" if name in grids else ""
        yield name, f"{slot}.{name}{grid}".replace(".", "/"), parameter  # names of parameters cannot hold dots


def _leading(whole: Tensor, wanted: Tensor) -> Tensor:
    """The leading part of `whole`, in every dimension, that has the shape of `wanted`."""
    return whole[tuple(slice(length) for length in wanted.shape)]


def _sides(name: str, parameter: Tensor, step: Step) -> tuple[int, ...]:
    """The lengths of all pieces of a block's parameter, in all dimensions."""
    spec, state = step
    return tuple(length for piece in spec.split(name, parameter, state).values() for length in piece.shape)


def _same_view(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one weight are of the same values."""
    return (one.shape, one.stride(), one.storage_offset()) == (other.shape, other.stride(), other.storage_offset())


def _distance(one: Grid, other: Grid) -> tuple[Fraction, int, Grid]:
    """How far `one` is from `other`: the ratio of their areas, exactly; among equals the larger comes first."""
    areas = sorted((one[0] * one[1], other[0] * other[1]))
    return Fraction(areas[1], areas[0]), -one[0] * one[1], one
