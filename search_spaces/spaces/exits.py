"""What images run through as far as each exit of a cascade, and how to time it."""

from functools import cached_property

import numpy as np

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, Row
from search_spaces.cascade import Cascade

__all__ = ["PREFIX", "Exits"]

PREFIX = "exits-"  # of the names, before the cascade's id


class Exits:
    """A cascade as far as each of its exits, with as many blocks in the last stage as it has, or other numbers of them.

    So every stage is timed where it runs: behind those that it reuses, and telling what the next one asks of it. What comes once in a stage
    is told from its blocks by their numbers. No `Space`: these networks have no codes.
    """

    def __init__(self, cascade: Cascade) -> None:
        self.cascade, self.name, self.classes = cascade, PREFIX + cascade.id, cascade.classes

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the cascade, and of no other network."""
        return tuple(sorted(set(self.cascade.rows)))

    def probes(self) -> tuple[Arch, ...]:
        """As far as each exit, with the fewest blocks in its stage and the most."""
        return tuple(dict.fromkeys(one for exits in self._networks for one in (exits[0], exits[-1])))

    def sample(self, rng: np.random.Generator) -> Arch:
        """A network drawn uniformly."""
        every = [one for exits in self._networks for one in exits]
        return every[int(rng.integers(len(every)))]

    def spread(self, rng: np.random.Generator) -> Arch:
        """The same: there are few, of every cost."""
        return self.sample(rng)

    @cached_property
    def _networks(self) -> tuple[tuple[Arch, ...], ...]:
        """As far as each exit, the fewest blocks first."""
        found = []
        for number, stage in enumerate(self.cascade.stages):
            blocks = sum(isinstance(spec, MB3D) for spec in stage.blocks)
            shorter = [
                self._network(number, depth) for depth in dict.fromkeys((1, (blocks + 1) // 2)) if depth < blocks
            ]
            longer = [self._network(number, 2)] if blocks == 1 else []
            every = (*shorter, self.cascade.until(number), *longer)
            found.append(tuple(one for one in every if one is not None))
        return tuple(found)

    def _network(self, number: int, depth: int) -> Arch | None:
        """As far as an exit, with so many blocks in its stage; None where these do not reuse what is there."""
        try:
            return self.cascade.until(number, depth)
        except ValueError:
            return None
