"""The timing protocol: networks visited in turn, in random order, round after round, a reference network in between."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol as Interface

import numpy as np

from nas.correction import lacking, wanting
from nas.visits import PROTOCOL, REFERENCE, Protocol, Visit

__all__ = ["Timed", "quiet", "time_interleaved"]

STABLE = 0.97  # a run at least this long, relative to the one before, shows that the time has stopped falling
RUN_DIGITS = 4  # of a run's milliseconds, a tenth of a microsecond: what the samples file keeps
SETTLED = 0.03  # the reference has settled when three visits in a row lie this close
SETTLING = 60  # visits of the reference to wait for that at most


class Timed(Interface):
    """What can be timed; see `nas.runtimes.Session`."""

    def reopen(self) -> None:
        """Load the network anew."""

    def close(self) -> None:
        """Give its memory back."""

    def time(self, repeats: int) -> list[float]:
        """Milliseconds of each of `repeats` runs, back to back."""


@contextmanager
def quiet(threads: int | None) -> Iterator[None]:
    """No garbage collection, and as many cores as the target has threads where the system allows; undone at the end."""
    collecting = gc.isenabled()
    pin = threads is not None and hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if pin else set()
    gc.collect()
    gc.disable()
    try:
        if pin and threads is not None:
            os.sched_setaffinity(0, sorted(cores)[-threads:])  # the last ones: the first core serves most interrupts
        yield
    finally:
        if pin:
            os.sched_setaffinity(0, cores)
        if collecting:
            gc.enable()


def _visit(session: Timed, protocol: Protocol) -> list[float]:
    """Warm up until the time stops falling, then run for about `visit_ms`."""
    warm = session.time(2)
    while len(warm) < protocol.warm_runs:
        warm += session.time(1)
        if warm[-1] > STABLE * warm[-2]:
            break
    repeats = min(protocol.max_runs, max(protocol.min_runs, round(protocol.visit_ms / min(warm))))
    return session.time(repeats)


def _settle(reference: Timed, protocol: Protocol) -> None:
    """Run the reference until its time is stable, or for a bounded number of visits."""
    levels: list[float] = []
    for _ in range(SETTLING):
        levels.append(float(np.median(_visit(reference, protocol))))
        if len(levels) >= 3 and max(levels[-3:]) <= (1 + SETTLED) * min(levels[-3:]):
            return


class _Walk:
    """One process's share of a measurement: makes the visits and hands each to `record`."""

    def __init__(
        self,
        sessions: Mapping[str, Timed],
        reference: Timed,
        protocol: Protocol,
        record: Callable[[Visit], None],
        done: Sequence[Visit],
    ) -> None:
        self.sessions, self.reference, self.protocol, self.record = sessions, reference, protocol, record
        self.visits = list(done)
        self.segment = 1 + max((visit.segment for visit in done), default=-1)
        self.order = 0

    def _note(self, number: int, name: str, session: Timed) -> None:
        at = round(time.time(), 3)
        runs = tuple(round(run, RUN_DIGITS) for run in _visit(session, self.protocol))
        visit = Visit(self.segment, number, self.order, name, at, runs)
        self.order += 1
        self.visits.append(visit)
        self.record(visit)

    def round(self, number: int, names: Sequence[str]) -> None:
        """Visit each of `names` once; each time in a freshly loaded session, as its place in memory matters."""
        if not names:
            return
        if self.order == 0:
            _settle(self.reference, self.protocol)
        self.reference.reopen()
        for position, name in enumerate(names):
            if position % self.protocol.beat == 0:
                self._note(number, REFERENCE, self.reference)
            self.sessions[name].reopen()
            self._note(number, name, self.sessions[name])
            self.sessions[name].close()
        self._note(number, REFERENCE, self.reference)


def time_interleaved(
    sessions: Mapping[str, Timed],
    reference: Timed,
    *,
    rounds: int,
    seed: int,
    threads: int | None = None,
    floor: float | None = None,
    protocol: Protocol = PROTOCOL,
    record: Callable[[Visit], None] = lambda visit: None,
    done: Sequence[Visit] = (),
    deadline: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Visit]:
    """Visit every network in every round; then those again that need it, for a bounded number of rounds.

    Args:
        sessions: what to time, by name.
        reference: a network of its own session, visited all along to tell the clock.
        rounds: visits that each network gets at least, unless the time is up before.
        seed: decides, with the round's number, the order of its visits.
        threads: the target's threads; the process is pinned to as many cores meanwhile.
        floor: milliseconds of the reference on an undisturbed machine, where known from another day.
        protocol: the figures to go by.
        record: called with each visit once it is made.
        done: visits recorded before; no network is visited twice in one round.
        deadline: of `time.monotonic()`, by which to be done; the least rounds are made however long they take.
        weights: how much each network matters, by name: where time is short, they get it first.

    Returns:
        All visits, those of `done` first.
    """
    walk = _Walk(sessions, reference, protocol, record, done)
    plan = _Rounds(walk, sorted(sessions), rounds, seed, floor, deadline, weights)
    with quiet(threads):
        plan.every()
        plan.more()
    return walk.visits


class _Rounds:
    """Which networks each round visits, and when the rounds end."""

    def __init__(
        self,
        walk: _Walk,
        names: Sequence[str],
        rounds: int,
        seed: int,
        floor: float | None,
        deadline: float | None,
        weights: Mapping[str, float] | None,
    ) -> None:
        self.walk, self.names, self.rounds, self.seed, self.floor = walk, names, rounds, seed, floor
        self.deadline, self.weights, self.protocol = deadline, weights, walk.protocol
        self.made = {(visit.round, visit.network) for visit in walk.visits}
        self.started, self.number, self.visited = time.monotonic(), 0, 0

    def every(self) -> None:
        """The rounds of all networks."""
        while self.number < self.rounds and (
            self.number < self.protocol.least_rounds or self._fit() >= len(self.names)
        ):
            self._round(self.names)

    def more(self) -> None:
        """The rounds of those that need more visits."""
        patience = self.started + self.rounds * self.protocol.patience_s
        while True:
            before = [visit for visit in self.walk.visits if visit.round < self.number]
            if self.number < self.protocol.last_round(self.rounds):
                wanted = wanting(before, self.names, self.rounds, self.protocol, self.floor, self.weights)
            elif time.monotonic() < patience:
                wanted = lacking(before, self.names, self.rounds, self.protocol, self.floor)
            else:
                return
            wanted = wanted[: self._fit()]
            if not wanted:
                return
            self._round(wanted)

    def _round(self, names: Sequence[str]) -> None:
        order = np.random.default_rng([self.seed, self.number]).permutation(len(names))
        left = [names[i] for i in order if (self.number, names[i]) not in self.made]
        self.walk.round(self.number, left)
        self.visited += len(left)
        self.number += 1

    def _fit(self) -> int:
        """How many visits there is time for, at the pace so far."""
        if self.deadline is None or not self.visited:
            return len(self.names)
        pace = (time.monotonic() - self.started) / self.visited
        return max(0, int((self.deadline - time.monotonic()) / pace))
