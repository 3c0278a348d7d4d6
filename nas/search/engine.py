"""A latency-constrained search: ask, price, evaluate, tell; then winners that are measured to hold their budgets."""

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
from nas.search import searcher_named
from nas.search.feasible import cheapest, check_budgets
from nas.search.searcher import Result, Searcher
from nas.train.supernet import WEIGHTS
from search_spaces import Space
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Candidate", "Measure", "Memory", "Plan", "Score", "Search", "Winner", "run_search", "supernet_config"]

ASKS_PER_TRIAL = 60  # proposals that may be passed over, for each one that is evaluated
NEAR = 0.85  # share of a budget from which on a network is worth a look: one that leaves more of it unused seldom wins
PATIENCE = 30  # proposals that are far below every budget before one of them is evaluated all the same
FINALISTS = 3  # candidates of a budget that are looked at on all validation images
TIGHTENINGS = 6  # times that a budget is tightened when the measured winner is over it
SAFETY = 0.995  # of the tightened budget, so that each round ends below the last

Measure = Callable[[Sequence[Arch]], list[float]]
"""Networks -> measured milliseconds of each, end to end in the target runtime."""

Memory = Callable[[Sequence[Arch]], list[float]]
"""Networks -> MB that each takes at its peak there; see `nas.peak_memory`."""


class Score(Protocol):
    """How good a network is, from 0 to 1."""

    def __call__(self, arch: Arch, images: int | None = None) -> float:
        """On the usual number of images, or on `images` of them."""


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
class Plan:
    """What is asked of a search."""

    budgets: tuple[float, ...]  # milliseconds
    trials: int  # networks to evaluate
    searcher: str = "nsga2"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if not self.budgets or not all(0 < budget < float("inf") for budget in self.budgets):
            raise InputError(f"budgets must be positive milliseconds, got {', '.join(f'{b:g}' for b in self.budgets)}")
        if self.trials < 1:
            raise InputError(f"--trials must be at least 1, got {self.trials}")


@dataclass(frozen=True)
class Candidate:
    """A network that was evaluated."""

    arch: Arch
    ms: float  # predicted
    high: float  # upper end of the prediction's band
    accuracy: float  # on search-validation, with the supernet's weights


@dataclass(frozen=True)
class Winner:
    """The network chosen for a budget."""

    budget_ms: float
    candidate: Candidate
    measured_ms: float
    search_acc: float  # on all search-validation images


class Search:
    """One search in a run folder. Everything that costs time is recorded there first, and read from there after a kill."""

    def __init__(self, space: Space, prices: Prices, score: Score, measure: Measure, plan: Plan, run: Run) -> None:
        """Read what an earlier process recorded in `run`."""
        self.space, self.prices, self.score, self.measure, self.plan, self.run = (
            space,
            prices,
            score,
            measure,
            plan,
            run,
        )
        self.evaluated: dict[str, Candidate] = {}
        self.finals: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.cheapest = cheapest(space, lambda arch: prices.predict(arch).high)
        most = prices.predict(space.largest).high
        self.limits = [min(budget, most) for budget in plan.budgets]
        for record in run.records():
            self._read(record)

    def _read(self, record: dict[str, Any]) -> None:
        if record["event"] == "evaluated":
            arch = self.space.decode(record["code"])
            if arch.id != record["arch"]:
                raise InputError(f"{self.run.path} was searched in another version of {self.space.name}; search again")
            self.evaluated[arch.id] = Candidate(arch, record["ms"], record["high"], record["accuracy"])
        elif record["event"] == "final":
            self.finals[record["arch"]] = record["accuracy"]
        else:
            self.measured[record["arch"]] = record["ms"]

    def _record(self, record: dict[str, Any]) -> None:
        self.run.append(record)
        self._read(record)

    def explore(self) -> None:
        """Evaluate the cheapest network, so that no budget above it stays empty, and those that the searcher proposes.

        Proposals over the largest budget are passed over, and so are those far below every budget, unless `PATIENCE` of
        them came in a row. A space with fewer than `plan.trials` networks ends the search early, and says so.
        """
        searcher = searcher_named(self.plan.searcher, self.space, self.run.path / "search.db", self.plan.seed)
        with progress("search", self.plan.trials, done=len(self.evaluated)) as bar:
            if self.cheapest.id not in self.evaluated:
                self._evaluate(self.cheapest)
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
        prediction = self.prices.predict(arch)
        if prediction.high > max(self.plan.budgets) or self._far(prediction.high, searcher):
            searcher.tell(arch, Result(prediction.ms, None))
            return
        if arch.id not in self.evaluated:
            self._evaluate(arch)
        searcher.tell(arch, Result(prediction.ms, self.evaluated[arch.id].accuracy))

    def _far(self, ms: float, searcher: Searcher) -> bool:
        """Whether a network leaves too much of every budget unused to be looked at now."""
        return searcher.passed < PATIENCE and not any(NEAR * limit <= ms <= limit for limit in self.limits)

    def _evaluate(self, arch: Arch) -> None:
        prediction = self.prices.predict(arch)
        code = [int(value) for value in self.space.encode(arch)]
        found = {"code": code, "arch": arch.id, "ms": prediction.ms, "high": prediction.high}
        self._record({"event": "evaluated", **found, "accuracy": self.score(arch)})

    def best_under(self, limit_ms: float) -> Candidate | None:
        """The most accurate candidate whose band ends below `limit_ms`; the few best are looked at on all validation images."""
        fitting = [candidate for candidate in self.evaluated.values() if candidate.high <= limit_ms]
        ranked = sorted(fitting, key=lambda candidate: (-candidate.accuracy, candidate.ms, candidate.arch.id))[
            :FINALISTS
        ]
        for candidate in ranked:
            if candidate.arch.id not in self.finals:
                accuracy = self.score(candidate.arch, images=10**9)
                self._record({"event": "final", "arch": candidate.arch.id, "accuracy": accuracy})
        return max(ranked, key=lambda candidate: (self.finals[candidate.arch.id], -candidate.ms), default=None)

    def winner(self, budget_ms: float, limit_ms: float | None = None) -> Winner:
        """The best candidate whose measured latency is within the budget; over it, the limit is tightened and solved again.

        Raises:
            BudgetError: no candidate holds the budget after a bounded number of tries.
        """
        limit = budget_ms if limit_ms is None else limit_ms
        for _ in range(TIGHTENINGS):
            candidate = self.best_under(limit)
            if candidate is None:
                break
            key = candidate.arch.id
            self._measure([candidate])
            if self.measured[key] <= budget_ms:
                return Winner(budget_ms, candidate, self.measured[key], self.finals[key])
            limit = tightened(limit, candidate.high, budget_ms, self.measured[key])
            say(
                f"search: {key} measures {self.measured[key]:.4g} ms, over {budget_ms:.4g}; limit tightened to {limit:.4g} ms"
            )
        raise BudgetError(
            f"none of the {len(self.evaluated)} networks evaluated holds {budget_ms:.4g} ms when measured; the cheapest of "
            f"{self.space.name} is predicted at {self.prices.predict(self.cheapest).ms:.4g} ms: raise --budget-ms"
        )

    def _measure(self, candidates: Sequence[Candidate]) -> None:
        """Measure those that were not measured before, all together."""
        archs = {one.arch.id: one.arch for one in candidates if one.arch.id not in self.measured}
        for name, ms in zip(archs, self.measure([*archs.values()]) if archs else (), strict=True):
            self._record({"event": "measured", "arch": name, "ms": ms})

    def winners(self) -> list[Winner]:
        """The winner of every budget, in the order of the plan."""
        best = [self.best_under(budget) for budget in self.plan.budgets]
        self._measure([candidate for candidate in best if candidate is not None])
        return [self.winner(budget) for budget in self.plan.budgets]


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
    memory: Memory | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Search into the run folder `out`; returns its summary, in the form that `nas search --json` prints.

    With `memory` the winners' peaks are measured too, once all else is done.

    Raises:
        BudgetError: a budget cannot be met.
        InputError: `out` holds another run.
    """
    started = time.monotonic()
    least, most = check_budgets(space, plan.budgets, lambda arch: prices.predict(arch).high)
    say(
        f"search: {space.name} has {space.size:,} networks from {least:.4g} to {most:.4g} ms; budgets {', '.join(f'{b:.4g}' for b in plan.budgets)}"
    )
    described = {
        **config,
        "space": space.name,
        "budgets": list(plan.budgets),
        "trials": plan.trials,
        "searcher": plan.searcher,
        "seed": plan.seed,
    }
    run = Run.start(out, "search", described, resume=resume)
    if run.summary is not None:
        return run.summary
    with run.locked():
        search = Search(space, prices, score, measure, plan, run)
        search.explore()
        winners = search.winners()
        peaks = [None] * len(winners) if memory is None else memory([winner.candidate.arch for winner in winners])
        results = [_written(winner, peak, out) for winner, peak in zip(winners, peaks, strict=True)]
        found = {"results": results, "evaluations": len(search.evaluated), "seconds": time.monotonic() - started}
        return run.finish(found)


def _written(winner: Winner, peak_mb: float | None, out: Path) -> dict[str, Any]:
    """Write the winner's architecture into `out`; its figures."""
    arch = winner.candidate.arch
    name = f"{arch.id}.arch.json"
    atomic_write(out / name, arch.to_json() + "\n")
    figures = {"budget_ms": winner.budget_ms, "predicted_ms": winner.candidate.ms, "measured_ms": winner.measured_ms}
    return {**figures, "peak_mb": peak_mb, "search_acc": winner.search_acc, "arch": name}


def supernet_config(supernet: Path, out: Path, table: LatencyTable) -> dict[str, str]:
    """What the config of a search in `out` says of its supernet, whose path is relative to `out`, and of its table."""
    weights = digest(load_weights(supernet / WEIGHTS))
    return {"supernet": os.path.relpath(supernet, out), "weights": weights, "table": table.id}
