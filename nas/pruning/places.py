"""The targets that a network is pruned for: what it and its file take on each, and which budgets that is over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas.pruning.files import Delivered, Files
from nas.pruning.job import Job
from nas.pruning.saved import Times

__all__ = ["Budgets", "Taken", "exceeded", "places_of", "told", "where"]

Budgets = tuple[float, ...]
"""Milliseconds, one for each target."""


@dataclass(frozen=True)
class Taken:
    """What a network takes on a target; before its times those of the dense one in the same run."""

    before: Times
    after: Times
    file: Delivered | None = None  # None where it is still to be made
    told: Mapping[str, float] = field(
        default_factory=dict
    )  # when it was chosen: `cheapest_ms`, and where files are timed `file_ms` and `file_median_ms`

    @property
    def ms(self) -> float:
        """The median of its runs, by which budgets are held."""
        return self.after["measured_median_ms"]

    @property
    def file_ms(self) -> float | None:
        """Of its file; None where none was timed."""
        return None if self.file is None or self.file.times is None else self.file.times.median_ms

    @property
    def recorded(self) -> list[Times]:
        """What `read` reads."""
        return [self.before, self.after, dict(self.told)]

    @classmethod
    def read(cls, recorded: Sequence[Times]) -> "tuple[Taken, ...]":
        """What networks take on one target after the other."""
        threes = (recorded[start : start + 3] for start in range(0, len(recorded), 3))
        return tuple(cls(before, after, told=rest[0] if rest else {}) for before, after, *rest in threes)


def places_of(job: Job, out: Path, scratch: Path) -> list[Files]:
    """Where the files of each target go: of the first into the run's folder `out`, of the others into folders of their names there."""
    found = [Files(job, out, scratch)]
    for place in job.places[1:]:
        name = place.table.target.name
        (out / name).mkdir(exist_ok=True)
        (scratch / name).mkdir()
        found.append(Files(place, out / name, scratch / name))
    return found


def exceeded(times: Sequence[float | None], budgets: Budgets) -> dict[int, float]:
    """The times that are over their budget, by the number of their target; None is of what was not timed."""
    pairs = enumerate(zip(times, budgets, strict=True))
    return {number: ms for number, (ms, budget) in pairs if ms is not None and ms > budget}


def where(place: Files, places: Sequence[Files]) -> str:
    """The target as a message has it; nothing where there is no other."""
    return "" if len(places) == 1 else f" on {place.job.table.target.name}"


def told(times: Mapping[int, float], places: Sequence[Files]) -> str:
    """Times by the number of their target as a message has them: 1.5 ms, or 1.5 ms on one and 2 ms on another."""
    return " and ".join(f"{ms:.4g} ms{where(places[number], places)}" for number, ms in times.items())
