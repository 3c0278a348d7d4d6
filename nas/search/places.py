"""The targets that a search is for: what networks take on each, and whether that is within a budget on all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Measure", "Place", "Predicted", "Prices", "Times", "binding", "budgets_each", "rows", "told", "within"]

Times = tuple[float, ...]
"""Milliseconds, or budgets in them: a figure for each target."""

Measure = Callable[[Sequence[Arch]], list[float]]
"""Networks -> measured milliseconds of each, end to end in the target runtime."""


class Predicted(Protocol):
    """A predicted latency with its band, in milliseconds."""

    @property
    def ms(self) -> float:
        """The prediction."""

    @property
    def high(self) -> float:
        """The upper end of its band."""


class Prices(Protocol):
    """What prices a network: a `LatencyTable`."""

    def predict(self, arch: Arch) -> Predicted:
        """The network's predicted latency."""


@dataclass(frozen=True)
class Place:
    """A target of a search, with as many budgets as every other has: a winner holds its own on all of them."""

    name: str | None  # None where there is no other to tell it from
    prices: Prices
    measure: Measure
    budgets: Times

    def high(self, arch: Arch) -> float:
        """The upper end of a network's predicted band, in ms."""
        return self.prices.predict(arch).high


def within(times: Times, limits: Times) -> bool:
    """Whether each time is within its limit."""
    return all(ms <= limit for ms, limit in zip(times, limits, strict=True))


def binding(times: Times, places: Sequence[Place]) -> float:
    """One figure to compare networks by: ms on the first target, or what their times elsewhere are there, each target's largest budget being equal."""
    first = max(places[0].budgets)
    return max(ms * (first / max(place.budgets)) for ms, place in zip(times, places, strict=True))


def told(times: Times, places: Sequence[Place]) -> str:
    """Times as a message has them: 1.5 ms, or 1.5 ms on one target and 2 ms on another."""
    if len(places) == 1:
        return f"{times[0]:.4g} ms"
    return " and ".join(f"{ms:.4g} ms on {place.name}" for ms, place in zip(times, places, strict=True))


def budgets_each(budgets: Sequence[Times], targets: int) -> list[Times]:
    """The budgets of each of so many targets: those given once are of all.

    Raises:
        InputError: there are neither one nor as many, they are not equally many, or the first target has one twice.
    """
    if len(budgets) not in (1, targets):
        raise InputError(
            f"--budget-ms is given {len(budgets)} times for {targets} {'target' if targets == 1 else 'targets'}; give it once for all, "
            "or once each"
        )
    if len(set(budgets[0])) < len(budgets[0]):
        raise InputError("winners are told apart by their budgets on the first target; give each another one there")
    if len({len(one) for one in budgets}) > 1:
        counts = " and ".join(str(len(one)) for one in budgets)
        raise InputError(f"every --budget-ms takes as many budgets, one for each winner; got {counts}")
    return [*budgets] if len(budgets) == targets else [*budgets] * targets


def rows(places: Sequence[Place]) -> Iterator[Times]:
    """The budgets of each winner, a target each."""
    return zip(*(place.budgets for place in places), strict=True)
