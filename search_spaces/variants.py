"""One set of weights as a network at another resolution, or with fewer loops."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count

import torch
from torch import Tensor
from torch.func import functional_call

from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError
from search_spaces.regrid import grid_of
from search_spaces.skeleton import Stats, average_moments, handed_in, skeleton

__all__ = [
    "check_sides",
    "extract_variant",
    "most_loops",
    "recalibrate_variant",
    "run_variant",
    "variant_state",
    "variant_weights",
]

ORDER = "order"  # what a block calls the order in which a loop has its tokens


def most_loops(arch: Arch) -> int:
    """How often the block with the most loops is applied; 1 for a network without recursion."""
    return next(loops for loops in count(1) if arch.with_loops(loops) == arch)


def check_sides(arch: Arch, sides: Sequence[int]) -> None:
    """Refuse image sizes, in pixels a side, that the network cannot take.

    Raises:
        InputError: a size at which a block cannot run, named with the block.
    """
    for side in sides:
        try:
            arch.at(side)
        except ValueError as error:
            raise InputError(
                f"network {arch.id} cannot take images of {side} pixels: {error}; choose another size"
            ) from error


def variant_weights(weights: Mapping[str, Tensor], arch: Arch, variant: Arch) -> dict[str, Tensor]:
    """The weights of `variant`, by their names in it, from `weights` of `arch`: parameters and BN statistics.

    They are the very tensors of `weights`, but those of another grid, which are interpolated, so that gradients flow back.
    Fixed tables, of indices or of sines, are not among them: each network makes its own, but for orders of tokens that came with
    weights, see `variant_state`.

    Args:
        weights: parameters and buffers of the network `arch`.
        arch: the network that the weights are of.
        variant: such as `arch.at(192)` or `arch.with_loops(1)`.

    Raises:
        ValueError: the blocks of `variant` are of other kinds or shapes, so that the weights do not fit.
    """
    if [spec.kind for spec in arch.blocks] != [spec.kind for spec in variant.blocks]:
        raise ValueError(
            f"network {variant.id} has other kinds of blocks than {arch.id}, whose weights it is to run on"
        )
    bound = {  # where a weight belongs to a grid: which block wants it, and the grid that it is on
        f"blocks.{position}.{name}": (spec, name, state, grid_of(grid))
        for position, ((spec, state), (source, before)) in enumerate(zip(variant.steps(), arch.steps(), strict=True))
        for name, grid in source.grid_params(before).items()
    }
    found: dict[str, Tensor] = {}
    for name, wanted in handed_in(_skeleton(variant, weights)).items():
        if name not in weights:
            raise ValueError(f"network {variant.id} needs the weight {name}, which {arch.id} lacks")
        tensor = weights[name]
        if name in bound:
            spec, own, state, grid = bound[name]
            tensor = spec.regrid(own, tensor, state, grid)
        if tensor.shape != wanted.shape:
            shapes = f"{tuple(wanted.shape)}, that of {arch.id} {tuple(tensor.shape)}"
            raise ValueError(f"{name} of network {variant.id} is {shapes}")
        found[name] = tensor
    return found


def variant_state(weights: Mapping[str, Tensor], arch: Arch, variant: Arch) -> dict[str, Tensor]:
    """All that `variant` loads, by name: `variant_weights` of the same arguments, and the fixed tables that it makes for itself.

    An order of tokens is that in `weights` where both networks would draw the same, so of as many tokens.

    Raises:
        ValueError: the weights do not fit, see `variant_weights`.
    """
    own = _skeleton(variant, weights).state_dict()
    fixed = {name: tensor.clone() for name, tensor in own.items() if not tensor.is_meta}  # the skeleton is shared
    orders = {name: weights[name] for name in _orders(arch, variant) if name in weights}
    return fixed | orders | variant_weights(weights, arch, variant)


def run_variant(network: Network, arch: Arch, variant: Arch, images: Tensor) -> Tensor:
    """Logits (B, classes) of `variant` for images (B, C, H, W) of its size, on the weights of `network`, which is an `arch`.

    It runs in the mode of the network. In training its BN updates the network's statistics, and gradients reach the
    network's parameters; nothing else is kept.

    Raises:
        ValueError: the weights do not fit, see `variant_weights`.
    """
    weights = _handed_in(network, arch, variant)
    device = next(network.parameters()).device
    logits: Tensor = functional_call(
        skeleton(variant, device, moments=True).train(network.training), weights, (images,)
    )
    return logits


def recalibrate_variant(network: Network, arch: Arch, variant: Arch, batches: Iterable[tuple[Tensor, Tensor]]) -> Stats:
    """BN statistics of `variant` on the parameters of `network`, averaged over batches of images of its size.

    Raises:
        ValueError: there are no batches, or the weights do not fit.
    """
    return average_moments(variant, _handed_in(network, arch, variant), batches)


def extract_variant(network: Network, arch: Arch, variant: Arch, stats: Stats | None = None) -> Network:
    """The variant alone, with its own copy of the weights, in eval mode; without `stats`, with BN statistics of `network`.

    Raises:
        ValueError: the weights do not fit, see `variant_weights`.
    """
    found = variant.build()
    found.load_state_dict(variant_state(_tensors(network), arch, variant) | (stats or {}))
    return found.to(next(network.parameters()).device).eval()


def _handed_in(network: Network, arch: Arch, variant: Arch) -> dict[str, Tensor]:
    """What a call of the variant's skeleton is given: weights, and orders of tokens that are the network's, with what follows from them."""
    own = _tensors(network)
    cuts = tuple(name.removesuffix(ORDER) for name in _orders(arch, variant))
    return {name: own[name] for name in own if name.startswith(cuts)} | variant_weights(own, arch, variant)


@lru_cache(maxsize=64)
def _orders(arch: Arch, variant: Arch) -> tuple[str, ...]:
    """Names of the orders of tokens that both networks draw alike, by themselves."""
    own, other = (skeleton(one, torch.device("cpu"), moments=True).state_dict() for one in (arch, variant))
    names = [name for name in own.keys() & other.keys() if name.endswith(ORDER)]
    return tuple(sorted(name for name in names if torch.equal(own[name], other[name])))


def _skeleton(variant: Arch, weights: Mapping[str, Tensor]) -> Network:
    """The variant without storage for its parameters, where the weights are."""
    device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
    return skeleton(variant, device, moments=True)


def _tensors(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers, the very tensors."""
    return dict(chain(network.named_parameters(), network.named_buffers()))
