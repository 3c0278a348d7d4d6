"""The spaces that are of one network and have no name in `SPACES`: what a file keeps of them, and opens them by."""

from collections.abc import Sequence

from nas.one_network import OneNetwork
from search_spaces.arch import Arch
from search_spaces.cascade import Cascade
from search_spaces.space import Measurable
from search_spaces.spaces.exits import Exits
from search_spaces.spaces.remains import Remains

__all__ = ["kept_of", "opened_from"]


def kept_of(space: Measurable) -> tuple[Arch, tuple[str, ...]] | None:
    """The network that a space is of, and the parts of it that may be made smaller; None of a space that has a name."""
    if isinstance(space, Exits):
        return space.cascade, ()
    if isinstance(space, OneNetwork):
        return space.arch, ()
    return (space.arch, tuple(sorted(space.parts))) if isinstance(space, Remains) else None


def opened_from(arch: Arch, parts: Sequence[str]) -> Measurable:
    """The space of which `kept_of` gave this: a cascade's exits, what may be left of another network, or that alone where nothing is smaller."""
    if isinstance(arch, Cascade):
        return Exits(arch)
    return Remains(arch, parts) if parts else OneNetwork(arch)
