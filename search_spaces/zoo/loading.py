"""Networks of the zoo by name, and with the weights that their authors released, or that a user trained in their naming."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, Position
from search_spaces.errors import InputError
from search_spaces.variants import check_sides, extract_variant
from search_spaces.zoo import checkpoint, dvt, efficientformer, efficientformerv2, mobile_former, mobilevit, sret, vit
from search_spaces.zoo.released import Entry, Family, Naming, Normalisation, check, fitted, places

__all__ = ["arch", "from_checkpoint", "load_released", "names", "normalisation", "with_new_head"]

FAMILIES: tuple[Family, ...] = (
    efficientformer.FAMILY,
    efficientformerv2.FAMILY,
    sret.FAMILY,
    vit.FAMILY,
    mobile_former.FAMILY,
    mobilevit.FAMILY,
    dvt.FAMILY,
)
OF: dict[str, Family] = {name: family for family in FAMILIES for name in family.archs}
ARCHS: dict[str, Arch] = {name: arch for family in FAMILIES for name, arch in family.archs.items()}
SIDES = range(1024, 15, -16)
"""Pixels of the image sizes that a release is looked for at: of those that round up to one grid, the largest is a multiple of it."""
Order = Callable[[int], Tensor]


def names() -> tuple[str, ...]:
    """All names that `arch` knows."""
    return tuple(ARCHS)


def arch(name: str) -> Arch:
    """The published network `name`; a `Cascade` where it has several exits.

    Raises:
        InputError: there is no such name.
    """
    if name not in ARCHS:
        raise InputError(f"no network called {name!r}; known: {', '.join(ARCHS)}")
    return ARCHS[name]


def normalisation(network: Arch) -> Normalisation | None:
    """By what the images were normalised that released weights of a network of the zoo, at any size and of any classes, were trained on.

    None where it is ImageNet's mean and deviation, by which images of folders and of Hugging Face's sets are normalised too, and for other networks.
    """
    kinds = [spec.kind for spec in network.blocks]
    for name, own in ARCHS.items():
        wanted = OF[name].normalisation
        if wanted is not None and kinds == [spec.kind for spec in own.blocks]:
            if network.with_classes(own.classes).at(own.image_size) == own:
                return wanted
    return None


def load_released(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    classes: int | None = None,
    image_size: int | None = None,
    locations: tuple[int, ...] | None = None,
    permutation: Order | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Network:
    """The network `name` with weights in its authors' naming or timm's, in eval mode; its `arch` says what it is.

    A cascade's is a `CascadeNetwork`, which gives a list of logits.

    Class count and image size are those of the weights, so that fine-tuned ones load as they are; images are taken as square.

    Args:
        name: of the zoo.
        state_dict: the weights, or a checkpoint that holds them (under `model`, `state_dict`, an EMA of them, with `module.`).
        classes: another number of classes: the head is fresh.
        image_size: another image size: positions and bias tables are interpolated.
        locations: of an AS-ViT, the blocks before which its thresholds prune; without it (4, 7, 10).
        permutation: of a SReT, the order (n,) of n tokens, which the release draws anew in every run; without it a fixed one.
        groups: of a SReT, into how many each stage's loops cut the tokens, which weights do not tell: see `sret.regrouped`; without it
            (8, 2), (4, 1), (1, 1), and `sret.UNSLICED` for weights "without slice".

    Raises:
        InputError: the weights do not fit, told with the first entry missing, unexpected and misshapen; or an argument does not.
    """
    network = arch(name)
    if locations is not None:
        if not network.locations:
            raise InputError(f"{name} prunes no tokens; locations are of the networks asvit_*")
        network = vit.pruned_at(network, locations)
    if groups is not None:
        network = _regrouped(name, network, groups)
    loaded = _adapted(_loaded(name, network, checkpoint.unwrapped(state_dict)), classes, image_size)
    if permutation is not None:
        _reorder(loaded, permutation, name)
    return loaded.eval()


def from_checkpoint(
    path: Path | str,
    name: str | None = None,
    *,
    classes: int | None = None,
    image_size: int | None = None,
    locations: tuple[int, ...] | None = None,
    permutation: Order | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Network:
    """The network in a .safetensors or .pth file, in eval mode, its `arch` beside it; nothing in the file is run.

    A file of ours says which network it holds. Of other weights the network is `name`, or the one of the zoo that they fit.
    The other arguments are those of `load_released`.

    Raises:
        InputError: the file is damaged or holds code, or its weights fit no network of the zoo, or not this one; see `load_released`.
    """
    path = Path(path)
    held = checkpoint.read(path)
    try:
        own = checkpoint.arch_in(path)
        if own is None:
            state = checkpoint.unwrapped(held)
            return load_released(
                name or _recognised(state),
                state,
                classes=classes,
                image_size=image_size,
                locations=locations,
                permutation=permutation,
                groups=groups,
            )
        if (name is not None and own != arch(name)) or (locations, permutation, groups) != (None, None, None):
            raise InputError(
                f"it says that it holds network {own.id}; leave out name, locations, permutation and groups"
            )
        return _adapted(_ours(own, held), classes, image_size).eval()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _ours(own: Arch, state: Mapping[str, Tensor]) -> Network:
    """The network with weights under our own names."""
    naming = {place: Entry(place) for place in places(own)}
    fault = check(own, naming, ("order",), state)
    if fault is not None:
        raise InputError(f"these weights are not those of network {own.id}: {fault}")
    network = own.build()
    orders = {name: order for name, order in state.items() if name.endswith(".order")}
    held = network.state_dict()
    for place, order in orders.items():
        if place not in held or not _is_order(order, len(held[place])):
            raise InputError(f"{place} is no order of tokens of network {own.id}; restore the file")
    network.load_state_dict({**network.state_dict(), **orders, **fitted(own, naming, state)})
    return network


def _adapted(network: Network, classes: int | None, image_size: int | None) -> Network:
    """The network for another number of classes and another image size, where they are given."""
    if classes is not None and classes < 1:
        raise InputError(f"a network tells at least one class apart, got classes={classes}")
    if classes is not None and classes != network.arch.classes:
        network = with_new_head(network, classes)
    if image_size is not None and image_size != network.arch.image_size:
        check_sides(network.arch, (image_size,))
        network = extract_variant(network, network.arch, network.arch.at(image_size))
    return network


def with_new_head(network: Network, classes: int) -> Network:
    """The network for another number of classes: all weights but those of its classifiers, which are fresh."""
    found = network.arch.with_classes(classes).build()
    wanted, own = found.state_dict(), network.state_dict()
    kept = {name: own[name] for name, new in wanted.items() if name in own and own[name].shape == new.shape}
    found.load_state_dict({**wanted, **kept})
    return found.train(network.training)


def _loaded(name: str, network: Arch, state: Mapping[str, Tensor]) -> Network:
    """The network with weights in one of its release's namings, of their own class count and image size."""
    own, naming, fault = _fit(name, network, state)
    if fault is not None:
        raise InputError(f"these weights are not those of {name}: {fault}")
    with torch.device("meta"):  # no time is spent on weights that are replaced
        found = own.build()
    weights = fitted(own, naming, state)
    for place, held in found.state_dict().items():
        if held.is_meta and place not in weights:  # the counters of BN
            weights[place] = torch.zeros(held.shape, dtype=held.dtype)
        weights.setdefault(place, held)
    found.load_state_dict(weights, assign=True)
    return found


def _fit(name: str, network: Arch, state: Mapping[str, Tensor]) -> tuple[Arch, Naming, str | None]:
    """The network as it must be for these weights, the naming they are in, and what does not fit; None where all does."""
    namings = _namings(name, network)
    chosen = max(range(len(namings)), key=lambda number: len(namings[number].keys() & state.keys()))
    own = _at_size(_of_classes(network, namings[chosen], state), namings[chosen], state)
    naming = _namings(name, own)[chosen]  # where sizes differ, so may scales
    return own, naming, check(own, naming, OF[name].tables, state)


@lru_cache(maxsize=256)
def _namings(name: str, network: Arch) -> tuple[Naming, ...]:
    return tuple(OF[name].namings(network))


def _of_classes(network: Arch, naming: Naming, state: Mapping[str, Tensor]) -> Arch:
    """The network with as many classes as its weights tell apart."""
    other = places(network.with_classes(network.classes + 1))
    bound = [place for place, shape in places(network).items() if other[place] != shape]
    counts = [
        len(state[name])
        for name, entry in naming.items()
        if entry.place in bound and name in state and state[name].ndim
    ]
    return network.with_classes(counts[0]) if counts and counts[0] else network


def _at_size(network: Arch, naming: Naming, state: Mapping[str, Tensor]) -> Arch:
    """The network at the image size that its weights were trained at, told by the tables that belong to a grid, sines among them."""
    bound = {
        f"blocks.{position}.{parameter}": position
        for position, (spec, before) in enumerate(network.steps())
        for parameter in (("table",) if isinstance(spec, Position) else spec.grid_params(before))
    }
    held = [(entry, state[name]) for name, entry in naming.items() if entry.place in bound and name in state]

    def fits(candidate: Arch) -> bool:
        return all(
            tuple(value.shape) == entry.shape(_shape_in(candidate, bound[entry.place], entry.place))
            for entry, value in held
        )

    return next((candidate for candidate in _sizes(network) if fits(candidate)), network)


def _shape_in(network: Arch, position: int, place: str) -> tuple[int, ...]:
    """The shape of one weight of a network, of which no more than its block is built."""
    with torch.device("meta"):
        block = network.blocks[position].build(network.states[position])
    return tuple(block.get_parameter(place.split(".", 2)[2]).shape)


def _sizes(network: Arch) -> Iterator[Arch]:
    """The network as it was published, then at every size that it can be at."""
    yield network
    for side in SIDES:
        try:
            yield network.at(side)
        except ValueError:  # a block cannot run there
            continue


def _reorder(network: Network, permutation: Order, name: str) -> None:
    """Give every loop that permutes tokens the order that `permutation` says.

    Raises:
        InputError: the network permutes none, or that is no order of its tokens.
    """
    drawn = [i for i, spec in enumerate(network.arch.blocks) if isinstance(spec, MB3D) and "permuted" in spec.orders]
    if not drawn:
        raise InputError(
            f"{name} permutes no tokens; permutation is of the networks sret_*, and of those whose later loops have groups"
        )
    state = network.state_dict()
    for place in [place for place in state if place.endswith(".order") and int(place.split(".")[1]) in drawn]:
        count = len(state[place])
        told: Any = permutation(count)
        try:
            order = torch.as_tensor(told)
        except (TypeError, ValueError, RuntimeError):  # what torch raises for what is no array
            order = torch.empty(0)
        if not _is_order(order, count):
            raise InputError(f"permutation({count}) gives no order of {count} tokens, such as torch.randperm gives")
        state[place] = order
    network.load_state_dict(state)


def _is_order(order: Tensor, count: int) -> bool:
    """Whether it has every number from 0 to `count` - 1 once."""
    return order.shape == (count,) and torch.equal(order.sort().values.cpu().long(), torch.arange(count))


def _regrouped(name: str, network: Arch, groups: Sequence[Sequence[int]]) -> Arch:
    """A SReT with other groups.

    Raises:
        InputError: the network is none, or its tokens cannot be cut so.
    """
    if OF[name] is not sret.FAMILY:
        raise InputError(f"{name} is no SReT; groups are of the networks sret_*")
    try:
        return sret.regrouped(network, groups)
    except ValueError as error:
        raise InputError(f"{name} with groups {groups}: {error}") from error


def _recognised(state: Mapping[str, Tensor]) -> str:
    """The first network of the zoo that the weights fit.

    Raises:
        InputError: they fit none, told with what the nearest lacks.
    """
    shared = {name: max(len(naming.keys() & state.keys()) for naming in _namings(name, ARCHS[name])) for name in ARCHS}
    most = max(shared.values())
    if not most:
        raise InputError(
            f"no entry, such as {next(iter(state))}, is known from a network of the zoo; known: {', '.join(ARCHS)}"
        )
    faults = {name: _fit(name, ARCHS[name], state)[2] for name, count in shared.items() if count == most}
    for name, fault in faults.items():
        if fault is None:
            return name
    name, fault = next(iter(faults.items()))
    raise InputError(f"these weights fit no network of the zoo; of the nearest, {name}: {fault}")
