"""Timing whole networks: Archs with random weights, or exported files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.correction import Times, settle
from nas.interleave import Timed, time_interleaved
from nas.prepare import opened
from nas.progress import progress, track
from nas.runtimes import RUNTIMES, Session
from nas.target import Target
from nas.visits import PROTOCOL, REFERENCE, Protocol, Visit
from search_spaces.arch import Arch

__all__ = ["ROUNDS", "Timing", "settled", "time_networks", "time_opened", "time_sessions"]

ROUNDS = 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a network; `median`, `p10` and `p90` are over its runs, at the clock of `ms`."""

    ms: float  # the table's statistic at the table's clock, where one was given
    raw_ms: float  # at the clock of the moment
    median: float
    p10: float
    p90: float
    n: int  # runs
    drift: float  # the clock of the moment over the table's: 1.1 is 10% slower
    noise: float  # split-half noise, see `nas.correction.Times`
    mean: float  # over the runs, as `p95`
    p95: float


def time_sessions(
    archs: Sequence[Arch | Path],
    reference: Arch,
    target: Target,
    *,
    rounds: int,
    seed: int,
    floor: float | None = None,
    protocol: Protocol = PROTOCOL,
    record: Callable[[Visit], None] = lambda visit: None,
    done: Sequence[Visit] = (),
    deadline: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Visit]:
    """Open the networks and time them, with progress on stderr; see `nas.interleave.time_interleaved`.

    Raises:
        InputError: a file is not a network for the target.
    """
    runtime, sessions = RUNTIMES[target.runtime], dict[str, Session]()
    with opened([arch for arch in archs if isinstance(arch, Arch)], target) as built:
        for arch in track(archs, "preparing networks", len(archs)):
            session = next(built) if isinstance(arch, Arch) else runtime.from_file(arch, target)
            session.close()
            sessions[name_of(arch)] = session
    return time_opened(
        sessions,
        reference,
        target,
        rounds=rounds,
        seed=seed,
        floor=floor,
        protocol=protocol,
        record=record,
        done=done,
        deadline=deadline,
        weights=weights,
    )


def time_opened(
    sessions: Mapping[str, Timed],
    reference: Arch,
    target: Target,
    *,
    rounds: int,
    seed: int,
    floor: float | None = None,
    protocol: Protocol = PROTOCOL,
    record: Callable[[Visit], None] = lambda visit: None,
    done: Sequence[Visit] = (),
    deadline: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Visit]:
    """Time what is open, by name, with progress on stderr; see `nas.interleave.time_interleaved`."""
    made = sum(visit.network in sessions for visit in done)
    with progress("timing", rounds * len(sessions), made) as bar:

        def note(visit: Visit) -> None:
            record(visit)
            bar.update(visit.network != REFERENCE)

        return time_interleaved(
            sessions,
            RUNTIMES[target.runtime].from_arch(reference, target),
            rounds=rounds,
            seed=seed,
            threads=target.threads,
            floor=floor,
            protocol=protocol,
            record=note,
            done=done,
            deadline=deadline,
            weights=weights,
        )


def name_of(arch: Arch | Path) -> str:
    """What a network is called among the visits."""
    return arch.id if isinstance(arch, Arch) else str(arch)


def time_networks(
    archs: Sequence[Arch | Path],
    target: Target,
    *,
    reference: Arch,
    reference_ms: float | None = None,
    statistic: str | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Timing]:
    """Time networks or exported files, and put them at a table's clock.

    Args:
        archs: what to time; equal ones are timed once.
        target: where.
        reference: the table's reference network.
        reference_ms: its milliseconds in the table; without them, times stay at the clock of the moment.
        statistic: the table's statistic, by which `reference_ms` was told; without it, the steadiest is taken.
        rounds: visits that each network gets at least.
        seed: decides the order of the visits.

    Raises:
        InputError: a file is not a network for the target, or the target asks for more than the machine has.
    """
    target.check_here()
    visits = time_sessions(tuple(dict.fromkeys(archs)), reference, target, rounds=rounds, seed=seed, floor=reference_ms)
    timings = settled(visits, rounds, statistic, reference_ms)
    return [timings[name_of(arch)] for arch in archs]


def settled(
    visits: Sequence[Visit], rounds: int, statistic: str | None, reference_ms: float | None
) -> dict[str, Timing]:
    """One timing for each network that was visited, by name; see `time_networks`."""
    times = settle(visits, rounds, PROTOCOL, statistic, reference_ms)
    drift = 1.0 if reference_ms is None else times.reference_ms / reference_ms
    return {name: _timing(name, times, drift) for name in times.ms}


def _timing(name: str, times: Times, drift: float) -> Timing:
    runs = np.concatenate([kept.runs for kept in times.kept[name]]) / drift
    low, middle, high, most = np.quantile(runs, (0.1, 0.5, 0.9, 0.95)).tolist()
    raw, noise, mean = times.ms[name], times.noise[name], float(runs.mean())
    return Timing(raw / drift, raw, middle, low, high, len(runs), drift, noise, mean, most)
