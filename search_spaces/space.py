"""`Space`: the networks a search may choose from, as a fixed-length code that any sampler can drive."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec, Row
from search_spaces.errors import InputError
from search_spaces.factors import Factor
from search_spaces.states import State

__all__ = ["Choice", "Code", "Measurable", "Space", "by_size"]

Code = NDArray[np.int64]  # (positions,) index into each choice's values


@dataclass(frozen=True)
class Choice:
    """One position of the code; `values` only ever get appended, so that codes and supernets outlive versions."""

    name: str
    values: tuple[float | str, ...]
    least: int = 0  # where the value of the smallest network is, and the largest's; the last unless told
    most: int | None = None

    @property
    def top(self) -> int:
        """The index of the largest network's value."""
        return len(self.values) - 1 if self.most is None else self.most


def by_size(name: str, values: tuple[float, ...]) -> Choice:
    """A choice whose smallest network has the least value, and the largest the most, in whatever order they were appended."""
    return Choice(name, values, values.index(min(values)), values.index(max(values)))


class Measurable(Protocol):
    """Networks whose rows can be measured: what a latency table is for."""

    name: str
    classes: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """See `Space.rows`."""

    def probes(self) -> tuple[Arch, ...]:
        """See `Space.probes`."""

    def sample(self, rng: np.random.Generator) -> Arch:
        """See `Space.sample`."""

    def spread(self, rng: np.random.Generator) -> Arch:
        """See `Space.spread`."""


class Space(ABC):
    """A set of Archs.

    A position that does not matter for a network (the FFN ratio of a block that is not there) is inactive and
    holds 0 in the canonical code, so that equal networks have equal codes.
    """

    name: str
    classes: int
    choices: tuple[Choice, ...]

    @abstractmethod
    def repair(self, code: Code) -> Code:
        """The canonical code nearest to any code of the right length: in range, rules kept, inactive positions 0."""

    @abstractmethod
    def _build(self, code: Code) -> Arch:
        """The network of a canonical code."""

    @abstractmethod
    def _read(self, arch: Arch) -> Code | None:
        """A code whose network may be `arch`, or None where it has no such form."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of different networks."""

    @property
    def smallest(self) -> Arch:
        """The network with the least of every choice, see `Choice`."""
        return self.decode(np.array([choice.least for choice in self.choices]))

    @property
    def largest(self) -> Arch:
        """The network with the most of every choice, see `Choice`."""
        return self.decode(np.array([choice.top for choice in self.choices]))

    @abstractmethod
    def slots(self, arch: Arch) -> tuple[str, ...]:
        """For each block of `arch`, the name of the shared weights it takes its own from; `arch` may have widths between the choices."""

    @cached_property
    @abstractmethod
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """Each slot's largest blocks, one of every form, with the largest states that they may meet."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every latency-table row that a network of this space may need, in a fixed order: those of its probes."""
        return tuple(sorted({row for arch in self.probes() for row in arch.rows}))

    @property
    @abstractmethod
    def terms(self) -> tuple[Factor, ...]:
        """What the rows of a network are made of: of any code in range, canonical or not, each term decides some of them.

        The values of a term are tuples of rows, and all terms together give `decode(code).rows`, in whatever order. So
        codes are priced without their networks.
        """

    @abstractmethod
    def probes(self) -> tuple[Arch, ...]:
        """Networks to time so that the time of every row can be told: chains of equal blocks in the context they run in."""

    def decode(self, code: Code) -> Arch:
        """The network of a code of shape (positions,).

        Raises:
            InputError: the code has another length or a value out of range.
        """
        code = np.asarray(code, dtype=np.int64)
        limits = np.array([len(choice.values) for choice in self.choices])
        if code.shape != limits.shape:
            raise InputError(f"a code of {self.name} has shape {limits.shape}, got {code.shape}")
        if (code < 0).any() or (code >= limits).any():
            wrong = int(np.flatnonzero((code < 0) | (code >= limits))[0])
            raise InputError(
                f"code position {wrong} ({self.choices[wrong].name}) holds {code[wrong]}, outside 0..{limits[wrong] - 1}"
            )
        return self._build(self.repair(code))

    def encode(self, arch: Arch) -> Code:
        """The canonical code of a network of this space; one with thresholds has that of the network that keeps the same numbers of every image.

        Raises:
            InputError: the network is not in the space.
        """
        code = self._code(arch)
        if code is None:
            raise InputError(f"network {arch.id} is not in the space {self.name}")
        return code

    def contains(self, arch: Arch) -> bool:
        """Whether `arch` is one of the networks; thresholds belong to weights, so `arch.keeping(adaptive=False)` answers for it."""
        return self._code(arch) is not None

    @cached_property
    def _at(self) -> Mapping[str, int]:
        """The position of each choice."""
        return {choice.name: position for position, choice in enumerate(self.choices)}

    def _coded(self, values: Mapping[str, float | str]) -> Code | None:
        """The code of these values, by the names of their choices, and 0 elsewhere; None where one is not among the choices."""
        code = np.zeros(len(self.choices), dtype=np.int64)
        for name, value in values.items():
            position = self._at.get(name)
            if position is None or value not in self.choices[position].values:
                return None
            code[position] = self.choices[position].values.index(value)
        return code

    def _value(self, code: Code, name: str) -> float | str:
        """A code's value of the choice of this name."""
        position = self._at[name]
        return self.choices[position].values[int(code[position])]

    def _number(self, code: Code, name: str) -> float:
        """The same, of a choice of numbers."""
        value = self._value(code, name)
        assert not isinstance(value, str)
        return value

    def _count(self, code: Code, name: str) -> int:
        """The same, of a choice of whole numbers."""
        return int(self._number(code, name))

    def _clipped(self, code: Code) -> Code:
        """A copy of a code of the right length, its values brought into range."""
        limits = np.array([len(choice.values) - 1 for choice in self.choices])
        return np.clip(np.asarray(code, dtype=np.int64), 0, limits)

    def _by_slot(self, arch: Arch) -> dict[str, tuple[tuple[BlockSpec, State], ...]]:
        """The blocks of one network by their slots, as in `bank`."""
        return {slot: (step,) for slot, step in zip(self.slots(arch), arch.steps(), strict=True)}

    def _code(self, arch: Arch) -> Code | None:
        """The canonical code of `arch`, None where it is not in the space."""
        code = self._read(arch)
        repaired = None if code is None else self.repair(code)
        return repaired if repaired is not None and self._build(repaired) == arch.keeping(adaptive=False) else None

    def sample(self, rng: np.random.Generator) -> Arch:
        """A network drawn with every position uniform."""
        return self._build(self.repair(self._draw(rng)))

    def spread(self, rng: np.random.Generator) -> Arch:
        """A network of any cost: a share is drawn, and each position is the largest network's with that probability, else uniform.

        Where many choices multiply, networks with every position uniform are nearly all a fraction of the largest.
        """
        top = np.array([choice.top for choice in self.choices])
        return self._build(self.repair(np.where(rng.random(len(top)) < rng.random(), top, self._draw(rng))))

    def mutate(self, arch: Arch, rng: np.random.Generator, rate: float = 0.1) -> Arch:
        """Draw each position anew with probability `rate`, at least one of them; never gives back `arch` unless it is alone.

        Bounded: after 100 draws that changed nothing active, a network drawn afresh is returned.
        """
        code = self.encode(arch)
        arch = self._build(code)
        for _ in range(100):
            chosen = rng.random(len(code)) < rate
            chosen[rng.integers(len(code))] = True
            child = self._build(self.repair(np.where(chosen, self._draw(rng), code)))
            if child != arch:
                return child
        return self.sample(rng)

    def crossover(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Take each position from one parent or the other."""
        one, two = self.encode(first), self.encode(second)
        return self._build(self.repair(np.where(rng.random(len(one)) < 0.5, one, two)))

    def _draw(self, rng: np.random.Generator) -> Code:
        return np.array([rng.integers(len(choice.values)) for choice in self.choices], dtype=np.int64)
