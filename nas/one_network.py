"""A network that no space has, and how to time its rows."""

from functools import cached_property

import numpy as np

from nas.plan import FEWEST
from nas.profile_probes import longer_and_shorter, row_probes
from search_spaces.arch import Arch
from search_spaces.blocks import Row
from search_spaces.errors import InputError

__all__ = ["PREFIX", "OneNetwork"]

PREFIX = "network-"  # of the names, before the network's id


class OneNetwork:
    """A network by itself, such as one of the zoo, and as a table is calibrated on several, with some blocks more or less. No `Space`: these have no codes."""

    def __init__(self, arch: Arch) -> None:
        """Take the network.

        Raises:
            InputError: it drops patches, which would have to be timed with every number of them, or there are fewer than three such networks.
        """
        if arch.locations:
            raise InputError(
                f"network {arch.id} drops patches and is in no space, whose rows are those of any number of them; give --table FILE"
            )
        self.arch, self.name, self.classes = arch, PREFIX + arch.id, arch.classes
        if len(self._networks) < FEWEST:
            raise InputError(
                f"network {arch.id} is in no space, and has too few blocks that can be repeated for a table of its own; give --table FILE"
            )

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The network's rows, each once."""
        return tuple(sorted(set(self.arch.rows)))

    def probes(self) -> tuple[Arch, ...]:
        """Short networks that have every row between them."""
        return row_probes(self.arch)

    def sample(self, rng: np.random.Generator) -> Arch:
        """A network drawn uniformly."""
        return self._networks[int(rng.integers(len(self._networks)))]

    def spread(self, rng: np.random.Generator) -> Arch:
        """The same: there are few, of every cost."""
        return self.sample(rng)

    @cached_property
    def _networks(self) -> tuple[Arch, ...]:
        return (self.arch, *longer_and_shorter(self.arch))
