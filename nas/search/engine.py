"""A latency-constrained search: ask, price, evaluate, tell; then winners that are measured to hold their budgets, on every target."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nas.errors import BudgetError
from nas.files import atomic_write
from nas.latency import LatencyTable
from nas.progress import progress, say
from nas.runs import Run, digest, load_weights
from nas.search import check_searcher, searcher_named
from nas.search.feasible import cheapest_for, check_budgets
from nas.search.places import Measure, Place, Prices, Times, binding, rows, told, within
from nas.search.searcher import Result, Searcher
from nas.train.supernet import WEIGHTS
from search_spaces import Space
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Candidate", "Memory", "Plan", "Score", "Search", "Winner", "run_search", "supernet_config"]

ASKS_PER_TRIAL = 60  # proposals that may be passed over, for each one that is evaluated
NEAR = 0.85  # share of a budget from which on a network is worth a look: one that leaves more of it unused seldom wins
PATIENCE = 30  # proposals that are far below every budget before one of them is evaluated all the same
FINALISTS = 3  # candidates of a budget that are looked at on all validation images
TIGHTENINGS = 6  # times that a budget is tightened when the measured winner is over it
SAFETY = 0.995  # of the tightened budget, so that each round ends below the last

Memory = Callable[[Sequence[Arch]], list[float]]
"""Networks -> MB that each takes at its peak there; see `nas.peak_memory`."""


class Score(Protocol):
    """How good a network is, from 0 to 1."""

    def __call__(self, arch: Arch, images: int | None = None) -> float:
        """On the usual number of images, or on `images` of them."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a search."""

    budgets: Times  # milliseconds on the first target, one for each winner
    trials: int  # networks to evaluate
    searcher: str = "nsga2"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if not self.budgets or not all(0 < budget < float("inf") for budget in self.budgets):
            raise InputError(f"budgets must be positive milliseconds, got {', '.join(f'{b:g}' for b in self.budgets)}")
        if self.trials < 1:
            raise InputError(f"--trials must be at least 1, got {self.trials}")
        check_searcher(self.searcher)


@dataclass(frozen=True)
class Candidate:
    """A network that was evaluated."""

    arch: Arch
    times: Times  # predicted, on each target
    highs: Times  # upper ends of the predictions' bands
    accuracy: float  # on search-validation, with the supernet's weights

    @property
    def ms(self) -> float:
        """Predicted for the first target."""
        return self.times[0]

    @property
    def high(self) -> float:
        """Upper end of the band of that."""
        return self.highs[0]


@dataclass(frozen=True)
class Winner:
    """The network chosen for a budget, or for one on each target."""

    budgets: Times
    candidate: Candidate
    measured: Times
    search_acc: float  # on all search-validation images

    @property
    def budget_ms(self) -> float:
        """On the first target."""
        return self.budgets[0]

    @property
    def measured_ms(self) -> float:
        """On the first target."""
        return self.measured[0]


class Search:
    """One search in a run folder. Everything that costs time is recorded there first, and read from there after a kill."""

    def __init__(
        self,
        space: Space,
        prices: Prices,
        score: Score,
        measure: Measure,
        plan: Plan,
        run: Run,
        *,
        target: str | None = None,
        beside: Sequence[Place] = (),
    ) -> None:
        """Read what an earlier process recorded in `run`; `target` and `beside` as in `run_search`."""
        self.space, self.score, self.plan, self.run = space, score, plan, run
        self.places = (Place(target, prices, measure, plan.budgets), *beside)
        self.budgets = [*rows(self.places)]
        self.evaluated: dict[str, Candidate] = {}
        self.finals: dict[str, float] = {}
        self.measured: dict[str, Times] = {}
        self.cheapest = cheapest_for(space, self.places)
        most = [place.high(space.largest) for place in self.places]
        self.limits = [tuple(map(min, budgets, most)) for budgets in self.budgets]
        for record in run.records():
            self._read(record)

    def _read(self, record: dict[str, Any]) -> None:
        if record["event"] == "evaluated":
            arch = self.space.decode(record["code"])
            if arch.id != record["arch"]:
                raise InputError(f"{self.run.path} was searched in another version of {self.space.name}; search again")
            self.evaluated[arch.id] = Candidate(arch, _each(record["ms"]), _each(record["high"]), record["accuracy"])
        elif record["event"] == "final":
            self.finals[record["arch"]] = record["accuracy"]
        else:
            self.measured[record["arch"]] = _each(record["ms"])

    def _record(self, record: dict[str, Any]) -> None:
        self.run.append(record)
        self._read(record)

    def explore(self) -> None:
        """Evaluate the cheapest network, so that no budget above it stays empty, and those that the searcher proposes.

        Proposals over every budget are passed over, and so are those far below every budget, unless `PATIENCE` of
        them came in a row. A space with fewer than `plan.trials` networks ends the search early, and says so.
        """
        searcher = searcher_named(self.plan.searcher, self.space, self.run.path / "search.db", self.plan.seed)
        with progress("search", self.plan.trials, done=len(self.evaluated)) as bar:
            for arch in self.cheapest:
                if arch.id not in self.evaluated:
                    self._evaluate(arch)
                    bar.update()
            while len(self.evaluated) < self.plan.trials and searcher.told < ASKS_PER_TRIAL * self.plan.trials:
                before = len(self.evaluated)
                self._trial(searcher)
                bar.update(len(self.evaluated) - before)
        if len(self.evaluated) < self.plan.trials:
            say(
                f"search: only {len(self.evaluated)} of {self.plan.trials} networks evaluated; {searcher.told} proposals were repeats or over budget"
            )

    def _trial(self, searcher: Searcher) -> None:
        arch = searcher.ask()
        times, highs = self._predicted(arch)
        ms = binding(times, self.places)
        if not any(within(highs, budgets) for budgets in self.budgets) or self._far(highs, searcher):
            searcher.tell(arch, Result(ms, None))
            return
        if arch.id not in self.evaluated:
            self._evaluate(arch)
        searcher.tell(arch, Result(ms, self.evaluated[arch.id].accuracy))

    def _far(self, highs: Times, searcher: Searcher) -> bool:
        """Whether a network leaves too much of every budget unused, on each target, to be looked at now."""
        near = (
            within(highs, limits) and any(NEAR * limit <= ms for ms, limit in zip(highs, limits, strict=True))
            for limits in self.limits
        )
        return searcher.passed < PATIENCE and not any(near)

    def _predicted(self, arch: Arch) -> tuple[Times, Times]:
        """Milliseconds on each target, and the upper ends of their bands."""
        found = [place.prices.predict(arch) for place in self.places]
        return tuple(one.ms for one in found), tuple(one.high for one in found)

    def _evaluate(self, arch: Arch) -> None:
        times, highs = self._predicted(arch)
        code = [int(value) for value in self.space.encode(arch)]
        found = {"code": code, "arch": arch.id, "ms": _recorded(times), "high": _recorded(highs)}
        self._record({"event": "evaluated", **found, "accuracy": self.score(arch)})

    def best_under(self, limits: Times) -> Candidate | None:
        """The most accurate candidate whose bands end below `limits`; the few best are looked at on all validation images."""
        fitting = [candidate for candidate in self.evaluated.values() if within(candidate.highs, limits)]
        ranked = sorted(fitting, key=lambda candidate: (-candidate.accuracy, candidate.ms, candidate.arch.id))[
            :FINALISTS
        ]
        for candidate in ranked:
            if candidate.arch.id not in self.finals:
                accuracy = self.score(candidate.arch, images=10**9)
                self._record({"event": "final", "arch": candidate.arch.id, "accuracy": accuracy})
        return max(ranked, key=lambda candidate: (self.finals[candidate.arch.id], -candidate.ms), default=None)

    def winner(self, budgets: Times, limits: Times | None = None) -> Winner:
        """The best candidate whose measured latency is within the budget of each target; where it is over, its limit is tightened and solved again.

        Raises:
            BudgetError: no candidate holds the budgets after a bounded number of tries.
        """
        limits = budgets if limits is None else limits
        for _ in range(TIGHTENINGS):
            candidate = self.best_under(limits)
            if candidate is None:
                break
            key = candidate.arch.id
            self._measure([candidate])
            taken = self.measured[key]
            if within(taken, budgets):
                return Winner(budgets, candidate, taken, self.finals[key])
            each = zip(limits, candidate.highs, budgets, taken, strict=True)
            limits = tuple(tightened(*one) if one[3] > one[2] else one[0] for one in each)
            say(
                f"search: {key} measures {self._told(taken)}, over {self._told(budgets)}; limit tightened to {self._told(limits)}"
            )
        least = self._predicted(self.cheapest[self.budgets.index(budgets)])[0]
        raise BudgetError(
            f"none of the {len(self.evaluated)} networks evaluated holds {self._told(budgets)} when measured; the cheapest of "
            f"{self.space.name} is predicted at {self._told(least)}: raise --budget-ms"
        )

    def _told(self, times: Times) -> str:
        return told(times, self.places)

    def _measure(self, candidates: Sequence[Candidate]) -> None:
        """Measure those that were not measured before, all together."""
        archs = {one.arch.id: one.arch for one in candidates if one.arch.id not in self.measured}
        if archs:
            taken = [place.measure([*archs.values()]) for place in self.places]
            for name, times in zip(archs, zip(*taken, strict=True), strict=True):
                self._record({"event": "measured", "arch": name, "ms": _recorded(times)})

    def winners(self) -> list[Winner]:
        """The winner of every budget, in the order of the plan."""
        best = [self.best_under(budgets) for budgets in self.budgets]
        self._measure([candidate for candidate in best if candidate is not None])
        return [self.winner(budgets) for budgets in self.budgets]


def _recorded(times: Times) -> float | Times:
    """Times as a record has them: of one target alone the figure itself."""
    return times[0] if len(times) == 1 else times


def _each(recorded: float | Sequence[float]) -> Times:
    """Times from a record."""
    return tuple(recorded) if isinstance(recorded, Sequence) else (recorded,)


def tightened(limit: float, predicted: float, budget: float, measured: float) -> float:
    """A limit below both the last one and the candidate, by the share that it was over budget."""
    return SAFETY * min(limit, predicted) * min(1.0, budget / measured)


def run_search(
    space: Space,
    prices: Prices,
    score: Score,
    measure: Measure,
    plan: Plan,
    out: Path,
    config: dict[str, Any],
    *,
    target: str | None = None,
    beside: Sequence[Place] = (),
    memory: Memory | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Search into the run folder `out`; returns its summary, in the form that `nas search --json` prints.

    `target` is the name of the one that `prices` and `measure` are of, and `beside` are further ones: winners hold their budgets on all.
    With `memory` the winners' peaks are measured too, once all else is done.

    Raises:
        BudgetError: a budget cannot be met.
        InputError: `out` holds another run.
    """
    started = time.monotonic()
    places = (Place(target, prices, measure, plan.budgets), *beside)
    for place, least, most in zip(places, *check_budgets(space, places), strict=True):
        where = f" on {place.name}" if beside else ""
        say(
            f"search: {space.name} has {space.size:,} networks from {least:.4g} to {most:.4g} ms{where}; budgets "
            f"{', '.join(f'{budget:.4g}' for budget in place.budgets)}"
        )
    described = {
        **config,
        "space": space.name,
        "budgets": list(plan.budgets),
        "trials": plan.trials,
        "searcher": plan.searcher,
        "seed": plan.seed,
        **({"beside": [[place.name, place.budgets] for place in beside]} if beside else {}),
    }
    run = Run.start(out, "search", described, resume=resume)
    if run.summary is not None:
        return run.summary
    with run.locked():
        search = Search(space, prices, score, measure, plan, run, target=target, beside=beside)
        search.explore()
        winners = search.winners()
        peaks = [None] * len(winners) if memory is None else memory([winner.candidate.arch for winner in winners])
        names = [place.name for place in places]
        results = [_written(winner, peak, names, out) for winner, peak in zip(winners, peaks, strict=True)]
        found = {"results": results, "evaluations": len(search.evaluated), "seconds": time.monotonic() - started}
        return run.finish(found)


def _written(winner: Winner, peak_mb: float | None, targets: Sequence[str | None], out: Path) -> dict[str, Any]:
    """Write the winner's architecture into `out`; its figures, those of the first target by themselves."""
    arch = winner.candidate.arch
    name = f"{arch.id}.arch.json"
    atomic_write(out / name, arch.to_json() + "\n")
    figures = {"budget_ms": winner.budget_ms, "predicted_ms": winner.candidate.ms, "measured_ms": winner.measured_ms}
    each = [
        {"target": target, "budget_ms": budget, "predicted_ms": ms, "measured_ms": taken}
        for target, budget, ms, taken in zip(
            targets, winner.budgets, winner.candidate.times, winner.measured, strict=True
        )
    ]
    return {**figures, "peak_mb": peak_mb, "search_acc": winner.search_acc, "arch": name, "targets": each}


def supernet_config(supernet: Path, out: Path, table: LatencyTable, *beside: LatencyTable) -> dict[str, Any]:
    """What the config of a search in `out` says of its supernet, whose path is relative to `out`, and of its tables."""
    weights = digest(load_weights(supernet / WEIGHTS))
    found: dict[str, Any] = {"supernet": os.path.relpath(supernet, out), "weights": weights, "table": table.id}
    return {**found, "tables_beside": [one.id for one in beside]} if beside else found
