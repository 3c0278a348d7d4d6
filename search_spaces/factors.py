"""`Factors`: what a space's codes decide, worked out once for all values of a few positions instead of network by network."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.blocks import BlockSpec, Row
from search_spaces.states import State

if TYPE_CHECKING:
    from search_spaces.space import Choice

__all__ = ["Factor", "Factors", "in_a_row"]

MOST = 200_000  # combinations that a table is filled for, which takes a second or two


@dataclass(frozen=True, eq=False)
class Factor:
    """Something that a few positions decide, such as the state that reaches a stage: a position itself, or a table of others."""

    values: tuple[Any, ...]  # hashable; each once
    sources: tuple["Factor", ...] = ()  # empty for a position
    table: NDArray[np.intp] | None = None  # a dimension for each source -> which of `values`
    position: int | None = None


class Factors:
    """The factors of a space's codes, by the names of its choices, and those derived from them.

    >>> from search_spaces.space import Choice
    >>> factors = Factors((Choice("depth", (1, 2)), Choice("width", (8, 16))))
    >>> factors.derive(lambda depth, width: depth * width, factors["depth"], factors["width"]).values
    (8, 16, 32)
    """

    def __init__(self, choices: Sequence["Choice"]) -> None:
        """A factor for each position, whose values are those of its choice."""
        self._at = {choice.name: Factor(choice.values, position=i) for i, choice in enumerate(choices)}
        self._tables: dict[Hashable, tuple[tuple[Any, ...], NDArray[np.intp]]] = {}

    def __getitem__(self, name: str) -> Factor:
        return self._at[name]

    def derive(self, function: Callable[..., Hashable], *sources: Factor) -> Factor:
        """What `function` gives for every combination of the sources' values, also for those that meet in no network.

        Raises:
            ValueError: there are more combinations than a table should have; derive something between.
        """
        sizes = [len(source.values) for source in sources]
        if prod(sizes) > MOST:
            raise ValueError(
                f"a factor of {' x '.join(map(str, sizes))} combinations; derive others between, at most {MOST:,}"
            )
        key = function, tuple(source.values for source in sources)
        if key not in self._tables:  # blocks of a stage share theirs
            found: dict[Hashable, int] = {}
            which = [found.setdefault(function(*values), len(found)) for values in product(*key[1])]
            self._tables[key] = tuple(found), np.array(which).reshape(sizes)
        return Factor(self._tables[key][0], sources, self._tables[key][1])


def in_a_row(blocks: Iterable[BlockSpec], state: State) -> tuple[State, tuple[Row, ...]]:
    """The state behind blocks that follow each other, and their rows."""
    rows: list[Row] = []
    for spec in blocks:
        rows += spec.rows(state)
        state = spec.output(state)
    return state, tuple(rows)
