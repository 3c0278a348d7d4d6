"""From visits to one time a network: which visits count, the clock they ran at, and the steadiest statistic.

Two things move a time. The clock drifts, slowly and for all networks alike: runs are divided by it. And a neighbour on
the same core or cache sets in from one moment to the next and slows some networks by 25%, others by 65% (measured on a
shared server), so that no division makes up for it: visits beside a slow reference are left out. Where a network has no
others, they stand in, divided by the calmer of the references beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.visits import REFERENCE, Protocol, Visit

__all__ = ["STATISTICS", "Kept", "Moved", "Times", "interval", "lacking", "settle", "wanting"]

STATISTICS: dict[str, float] = {"median": 0.5, "p20": 0.2, "p05": 0.05}  # name -> quantile over a network's runs

FLOOR = 0.05  # quantile of the reference visits that is the undisturbed reference
LOCAL = 0.1  # the same for the clock of the moment, where fewer visits tell it
MOST = 3.0  # times as narrow as usual, the interval of a network that matters most
TELLING = 3  # visits below which their spread says nothing
NORMAL = (
    1.96 * 1.2533 * 1.4826
)  # half of a 95% interval over the median absolute deviation, times the root of the number
FEW = 2  # undisturbed visits that a network makes do with, rather than take in disturbed ones


@dataclass(frozen=True)
class Kept:
    """A visit with the clock and the disturbance of its moment."""

    visit: Visit
    drift: float  # what its times are divided by: 1.02 where the clock of the moment was 2% slower than usual
    disturbance: float  # how far the slower of the references beside it stood above the reference's floor
    steady: bool  # whether that is within the tolerance

    @property
    def runs(self) -> NDArray[np.float64]:
        """Milliseconds of each run at the usual clock."""
        return np.asarray(self.visit.runs) / self.drift


@dataclass(frozen=True)
class Moved:
    """How far networks' times went between two sittings, the relative difference of a network's statistic.

    The last process that timed is a sitting and those before it are the other: each lays networks out in memory in its own way. Where
    there was one process only, they are the later half of its visits and the earlier one.
    """

    each: float = 0.0  # root mean square over the networks
    together: float = 0.0  # their mean, as a magnitude: the networks as one, beside the reference

    @property
    def apart(self) -> float:
        """Root mean square of what each network did beyond that."""
        return float(np.sqrt(max(0.0, self.each**2 - self.together**2)))


@dataclass(frozen=True)
class Times:
    """What a measurement amounts to; milliseconds at the usual clock of an undisturbed machine."""

    statistic: str
    ms: Mapping[str, float]  # by network
    reference_ms: float
    noise: Mapping[str, float]  # split-half, by network: |a - b| / mean(a, b), a over every other visit, b the rest
    noise_floor: float  # mean of `noise`
    drift: float  # slowest clock over fastest among the kept visits, less 1
    disturbed: float  # share of the visits that were disturbed
    moved: Moved  # how far times went between two sittings
    interval: float  # half the 95% interval of a network's time, as a share of it: what 90% of the networks are within
    poor: tuple[str, ...]  # networks with fewer undisturbed visits than they need
    kept: Mapping[str, tuple[Kept, ...]]  # by network, in order of time
    every: tuple[Kept, ...]  # all visits but the reference's, disturbed or not

    def redrawn(self, rng: np.random.Generator) -> dict[str, float]:
        """`ms` of as many visits of each network, drawn anew from those that count."""
        quantile = STATISTICS[self.statistic]
        return {
            name: _quantile([kept[i] for i in rng.integers(len(kept), size=len(kept))], quantile)
            for name, kept in self.kept.items()
        }


def _rolling(levels: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Low quantile of the levels within `window` of each."""
    return np.array([np.quantile(levels[max(0, i - window) : i + window + 1], LOCAL) for i in range(len(levels))])


def _judge(visits: Sequence[Visit], protocol: Protocol, known: float | None) -> list[Kept]:
    """Every visit, the reference's included, with drift and disturbance told by the reference visits beside it."""
    beats = [visit for visit in visits if visit.network == REFERENCE]
    everything = np.array([np.median(beat.runs) for beat in beats])
    floor, usual = np.quantile(everything, FLOOR), np.quantile(everything, LOCAL)
    floor = floor if known is None else min(floor, known)
    judged: list[Kept] = []
    for segment in sorted({beat.segment for beat in beats}):
        level = everything[[beat.segment == segment for beat in beats]]
        members = sorted((v for v in visits if v.segment == segment), key=lambda v: v.order)
        orders = np.array([v.order for v in members if v.network == REFERENCE])
        clock = _rolling(level, protocol.window) / usual
        for visit in members:
            before = max(0, int(np.searchsorted(orders, visit.order, side="right")) - 1)
            after = before if visit.network == REFERENCE else min(before + 1, len(level) - 1)
            calmer, slower = sorted((level[before], level[after]))
            steady = bool(slower <= (1 + protocol.tolerance) * floor)
            moment = min(np.interp(visit.order, orders, clock), slower / usual)  # a long slow spell is not the clock
            drift = moment if steady else max(calmer / usual, 1.0)
            judged.append(Kept(visit, float(drift), float(slower / floor - 1), steady))
    return judged


def _steady(judged: Iterable[Kept]) -> list[Kept]:
    """The undisturbed visits."""
    return [kept for kept in judged if kept.steady]


def _select(judged: Sequence[Kept], rounds: int, protocol: Protocol) -> tuple[Kept, ...]:
    """The undisturbed visits, or for want of them the least disturbed ones; in order of time."""
    chosen = _steady(judged)
    if len(chosen) < min(FEW, protocol.enough(rounds)):
        chosen = sorted(judged, key=lambda kept: kept.disturbance)[: protocol.enough(rounds)]
    return tuple(sorted(chosen, key=lambda kept: (kept.visit.segment, kept.visit.order)))


def _by_network(judged: Iterable[Kept]) -> dict[str, list[Kept]]:
    groups: dict[str, list[Kept]] = {}
    for kept in judged:
        groups.setdefault(kept.visit.network, []).append(kept)
    return groups


def _quantile(kept: Sequence[Kept], quantile: float) -> float:
    return float(np.quantile(np.concatenate([one.runs for one in kept]), quantile))


def _split_half(kept: Sequence[Kept], quantile: float) -> float:
    """Relative difference of the statistic between every other visit and the rest; 0 for a single visit."""
    if len(kept) < 2:
        return 0.0
    first, second = _quantile(kept[::2], quantile), _quantile(kept[1::2], quantile)
    return 2 * abs(first - second) / (first + second)


def _moved(kept: Mapping[str, Sequence[Kept]], quantile: float) -> Moved:
    """Between the sittings of networks that were visited more than once."""
    last = max(one.visit.segment for visits in kept.values() for one in visits)
    went = np.array([_went(visits, quantile, last) for visits in kept.values() if len(visits) > 1] or [0.0])
    return Moved(float(np.sqrt(np.square(went).mean())), float(abs(went.mean())))


def _went(kept: Sequence[Kept], quantile: float, last: int) -> float:
    """Relative difference of the statistic between the segment `last` and those before; the visits are in order of time."""
    middle = sum(one.visit.segment < last for one in kept)
    if middle in (0, len(kept)):  # one sitting only
        middle = len(kept) // 2
    before, after = _quantile(kept[:middle], quantile), _quantile(kept[middle:], quantile)
    return 2 * (after - before) / (after + before)


def interval(kept: Sequence[Kept]) -> float:
    """Half the 95% interval of the median over visits, as a share of it; infinite where there are too few to tell."""
    if len(kept) < TELLING:
        return float("inf")
    levels = np.array([np.median(one.runs) for one in kept])
    middle = np.median(levels)
    return float(NORMAL * np.median(np.abs(levels - middle)) / np.sqrt(len(levels)) / middle)


def wanting(
    visits: Sequence[Visit],
    names: Iterable[str],
    rounds: int,
    protocol: Protocol,
    floor: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """The networks to visit again, the most urgent first: disturbed too often, or with too wide an interval.

    `weights` say how much a network matters, by name, and so how narrow its interval must be; without them all matter alike.
    `floor` is as for `settle`.
    """
    judged = _by_network(_judge(visits, protocol, floor))
    usual = 1.0 if weights is None else float(np.sqrt(np.mean(np.square(list(weights.values())))))
    needed = min(TELLING, rounds)
    urgency: dict[str, float] = {}
    for name in names:
        steady = _steady(judged.get(name, ()))
        known = len(steady) >= max(needed, protocol.enough(rounds))
        weight = 1.0 if weights is None else min(MOST, weights[name] / usual)
        width = interval(steady) if len(steady) >= TELLING else 0.0
        if not known or width * weight > protocol.interval:
            urgency[name] = weight * (min(1.0, width) if known else 1.0)
    return sorted(urgency, key=lambda name: (-urgency[name], name))


def lacking(
    visits: Sequence[Visit], names: Iterable[str], rounds: int, protocol: Protocol, floor: float | None = None
) -> list[str]:
    """The networks that still need undisturbed visits; `floor` as for `settle`."""
    judged = _by_network(_judge(visits, protocol, floor))
    return sorted(name for name in names if len(_steady(judged.get(name, ()))) < protocol.enough(rounds))


def settle(
    visits: Sequence[Visit],
    rounds: int,
    protocol: Protocol,
    statistic: str | None = None,
    floor: float | None = None,
) -> Times:
    """One time a network.

    Args:
        visits: all that were made, those of the reference included.
        rounds: how many each network should have had.
        protocol: the figures to go by.
        statistic: a key of `STATISTICS`; without it, the one with the least split-half noise.
        floor: milliseconds of the reference on an undisturbed machine, where known from another day.
    """
    judged = _judge(visits, protocol, floor)
    groups = _by_network(judged)
    kept = {name: _select(group, rounds, protocol) for name, group in groups.items()}
    networks = sorted(name for name in kept if name != REFERENCE)
    names = [statistic] if statistic else list(STATISTICS)
    noises = {name: {network: _split_half(kept[network], STATISTICS[name]) for network in networks} for name in names}
    chosen = min(names, key=lambda name: float(np.mean(list(noises[name].values()))))
    clocks = [one.drift for network in networks for one in kept[network]]
    every = tuple(one for one in judged if one.visit.network != REFERENCE)
    return Times(
        statistic=chosen,
        ms={network: _quantile(kept[network], STATISTICS[chosen]) for network in networks},
        reference_ms=_quantile(kept[REFERENCE], STATISTICS[chosen]),
        noise=noises[chosen],
        noise_floor=float(np.mean(list(noises[chosen].values()))),
        drift=max(clocks) / min(clocks) - 1,
        poor=tuple(network for network in networks if len(_steady(groups[network])) < protocol.enough(rounds)),
        moved=_moved({network: kept[network] for network in networks}, STATISTICS[chosen]),
        disturbed=float(np.mean([not one.steady for one in every])),
        interval=float(np.quantile([min(1.0, interval(kept[network])) for network in networks], 0.9)),
        kept={network: kept[network] for network in networks},
        every=every,
    )
