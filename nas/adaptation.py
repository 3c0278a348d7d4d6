"""A new target's rows from other targets' tables and the times of a few whole networks.

Twenty networks cannot tell hundreds of rows apart, and one scale for all of them is wrong: operators gain unequally from
threads or int8, and an eager runtime adds a constant to each. So what is unknown is shared among rows that are alike (see
`nas.row_prior`), and estimated at once by least squares of relative errors, each part shrunk towards the tables' mean by a
ridge of its own (Bayesian linear regression). How strong the ridges are is told by leaving one network out, in closed form;
rather than the best strengths, their mean is taken, weighted by the density that they give the networks left out.
`benchmarks/adaptation_study.py` judges this on each shipped table by the others, and on ten kinds of made-up targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.calibration import banded
from nas.latency import LatencyTable
from nas.plan import CALIBRATION_STREAM, USE_STREAM, draw, rows_to_time
from nas.row_prior import EXTRA, USUAL, Likeness, Prices, Prior, every_strength
from nas.table_file import Calibration, RowTime
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.space import Measurable

__all__ = ["NETS", "Adapted", "adapt", "check_sources", "choose_nets", "usual_nets"]

NETS = 40  # networks to time unless told: with 20, one target of six has nine of ten within 5%, with 40 all
FEWEST = 8  # below which the held-out errors say nothing
POOL = 150  # networks of every cost, and as many drawn uniformly, whose predictions are to be good
WIDE = 800  # of both, to choose from
OCCASION = 0.01  # by which one day differs from another, all networks together: benchmarks/latency_occasions.py
LEAST_NOISE = 0.02  # of a network's time, however well it is measured: rows do not quite add up
P10, P50_MAD = 1.2816, 0.6745  # of a normal distribution, in standard deviations

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Way:
    """What one set of strengths makes of the networks' times."""

    variances: Floats  # (parts,) of the prior
    gain: Floats  # (columns, networks) covariances of the columns with the networks' relative times
    inverse: Floats  # (networks, networks) of the covariances of those times
    ms: Floats  # (columns,)


@dataclass(frozen=True)
class _Fit:
    """The new columns: the mean over all strengths, and how uncertain they and networks are."""

    prior: Prior
    noise: float
    ways: tuple[_Way, ...]
    weights: Floats  # (ways,) 1 together

    @staticmethod
    def of(prices: Prices, likeness: Likeness, counts: Floats, ms: Floats, noise: float) -> "_Fit":
        """New columns from the times (networks,) of networks with `counts`; `noise` is relative."""
        prior = Prior.of(prices, likeness, counts, ms)
        relative = counts / ms[:, None]
        rest = 1 - relative @ prior.start
        covariances = prior.covariances(relative)
        ways, density = [], []
        for strengths in every_strength(len(prices.ms)):
            gain = np.tensordot(strengths.variances, covariances, 1)
            inverse = np.linalg.inv(relative @ gain + noise**2 * np.eye(len(ms))).astype(np.float64)
            ways.append(_Way(strengths.variances, gain, inverse, prior.start + gain @ (inverse @ rest)))
            variance = 1 / np.diag(inverse)  # of each network by the others; times `inverse @ rest`, its error
            density.append(-0.5 * float((np.square(inverse @ rest) * variance + np.log(variance)).sum()))
        weights = np.exp(np.array(density) - max(density))
        return _Fit(prior, noise, tuple(ways), weights / weights.sum())

    def ms(self) -> Floats:
        """(columns,) the new ones; no row is below zero."""
        mean: Floats = self.weights @ np.array([way.ms for way in self.ways])
        mean[:-EXTRA] = np.maximum(mean[:-EXTRA], 0.0)
        return mean

    def deviation(self) -> Floats:
        """(columns,) standard deviation, ms."""
        squares, mean = self.prior.squares(), self.weights @ np.array([way.ms for way in self.ways])
        told = np.array([way.variances @ squares - ((way.gain @ way.inverse) * way.gain).sum(1) for way in self.ways])
        variance = self.weights @ (told + [np.square(way.ms - mean) for way in self.ways])
        out: Floats = np.sqrt(np.maximum(variance, 0.0))
        return out

    def left_out(self) -> Floats:
        """(networks,) standard deviation of the relative error of each, were it not timed."""
        out: Floats = np.sqrt(self.weights @ [1 / np.diag(way.inverse) for way in self.ways])
        return out

    def unseen(self, counts: Floats) -> Floats:
        """(networks,) standard deviation of the relative error of others, of `counts`."""
        relative = counts / (counts @ self.prior.start)[:, None]
        parts = np.einsum("nc,pcn->pn", relative, self.prior.covariances(relative))
        gains = [relative @ way.gain for way in self.ways]
        told = [
            way.variances @ parts - ((gain @ way.inverse) * gain).sum(1)
            for way, gain in zip(self.ways, gains, strict=True)
        ]
        out: Floats = np.sqrt(np.maximum(self.weights @ np.array(told), 0.0) + self.noise**2)
        return out


@dataclass(frozen=True)
class Adapted:
    """What a new table holds beside what was measured."""

    rows: Mapping[str, RowTime]  # by key; the spread is that of what is not known
    calibration: Calibration
    factors: Mapping[str, float]  # new over the first table's ms of all rows of a kind together
    one_scale: float  # were the first table's rows scaled alike: new over old ms, for comparison,
    one_scale_mape: float  # and its held-out error


def adapt(
    sources: Sequence[LatencyTable],
    archs: Sequence[Arch],
    ms: Floats,
    noise: float,
    usual: Sequence[Arch],
    visits: Sequence[int] | None = None,
) -> Adapted:
    """The rows of `sources` on a new target, from whole networks' times there.

    The held-out errors are those of fits that never saw the network, strengths included. The band is that of the usual networks:
    it follows from the same errors, each put from how far such a network may be off to how far the usual ones may.

    Args:
        sources: tables that have all rows of the networks between them; factors and the one scale compare with the first.
        archs: the networks, at least three; `choose_nets` says which tell most.
        ms: (networks,) their times on the new target.
        noise: relative noise of a time.
        usual: networks such as will be asked for; see `usual_nets`.
        visits: of each network, to be counted in the rows.
    """
    assert len(archs) == len(ms) >= 3
    prices, noise = Prices.of(sources), max(noise, LEAST_NOISE)
    likeness, counts = Likeness.of(prices.keys), prices.counts(archs)
    ratios = ms / (counts @ prices.ms[0])
    errors, by_scale = np.empty(len(ms)), np.empty(len(ms))
    for i in range(len(ms)):
        others = np.arange(len(ms)) != i
        errors[i] = counts[i] @ _Fit.of(prices, likeness, counts[others], ms[others], noise).ms() / ms[i] - 1
        by_scale[i] = np.median(ratios[others]) / ratios[i] - 1
    fit = _Fit.of(prices, likeness, counts, ms, noise)
    new, deviation = fit.ms(), fit.deviation()
    times = (counts > 0).T @ np.array(visits if visits is not None else [0] * len(ms))
    rows = {key: _row_time(float(new[i]), float(deviation[i]), int(times[i])) for i, key in enumerate(prices.keys)}
    likely = np.sqrt(np.square(fit.unseen(prices.counts(usual))).mean()) / fit.left_out()
    calibration = banded(errors, beyond=OCCASION**2, likely=likely, offset=float(new[-1]))
    return Adapted(rows, calibration, _factors(prices, new), float(np.median(ratios)), float(np.abs(by_scale).mean()))


def _row_time(ms: float, deviation: float, visits: int) -> RowTime:
    return RowTime(ms, ms, max(0.0, ms - P10 * deviation), ms + P10 * deviation, P50_MAD * deviation, visits)


def _factors(prices: Prices, new: Floats) -> dict[str, float]:
    kinds = np.array([key.partition("@")[0] for key in prices.keys])
    rows = prices.ms[0, :-EXTRA]
    return {
        str(kind): float(new[:-EXTRA][kinds == kind].sum() / rows[kinds == kind].sum()) for kind in np.unique(kinds)
    }


def check_sources(sources: Sequence[LatencyTable], space: Measurable, thresholds: bool = True) -> None:
    """Refuse tables that the space's networks cannot be adapted from, those with `thresholds` only where the new target runs them.

    Raises:
        InputError: one is of another space, or there are rows that all of them lack.
    """
    for source in sources:
        if source.content.space != space.name:
            is_of = f"{source.path.name} is of the space {source.content.space}"
            raise InputError(f"{is_of}; --from needs one of {space.name}")
    needed = rows_to_time(space, thresholds)
    lacking = [row for row in needed if not any(row.key in source.rows for source in sources)]
    if lacking:
        first, *others = sources
        lack = f"{first.path.name} and {len(others)} more lack" if others else f"{first.path.name} lacks"
        known = ", ".join(map(str, sorted({count for source in sources for count in source.content.classes})))
        raise InputError(
            f"{lack} {len(lacking)} rows of {space.name} with {space.classes} classes, such as {lacking[0].key}; "
            f"measured with {known} classes: pass --classes, or another table to --from"
        )


def choose_nets(sources: Sequence[LatencyTable], space: Measurable, count: int, seed: int) -> tuple[Arch, ...]:
    """The networks whose times would tell most about the others, chosen one after the other; none from the validation's stream.

    Each is the one that, timed beside those chosen before, leaves the least variance in the predictions for a pool of networks.

    Raises:
        InputError: `count` is below eight, or the space has fewer networks to draw.
    """
    if count < FEWEST:
        raise InputError(f"--nets must be at least {FEWEST}, got {count}: fewer do not tell how good the new table is")
    pool = usual_nets(space, seed)
    wide = _drawn(space, WIDE, seed) if len(pool) > POOL else ()  # a small space has no more
    every = tuple(dict.fromkeys((*pool, *wide)))
    if len(every) < count:
        raise InputError(f"--nets asks for {count} networks, and {len(every)} were found in {space.name}; lower --nets")
    prices = Prices.of(sources)
    counts = prices.counts(every)
    prior = Prior.of(prices, Likeness.of(prices.keys), counts, counts @ prices.ms[0])
    relative = counts / (counts @ prior.start)[:, None]
    columns = np.tensordot(USUAL.variances, prior.covariances(relative), 1)
    unknown = relative @ columns  # (networks, networks), of relative errors
    chosen: list[int] = []
    for _ in range(count):
        own = np.diag(unknown) + LEAST_NOISE**2
        gain = np.square(unknown[: len(pool)]).sum(0) / own
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        told = unknown[:, chosen[-1]]
        unknown = unknown - np.outer(told, told) / own[chosen[-1]]
    return tuple(every[i] for i in chosen)


def usual_nets(space: Measurable, seed: int) -> tuple[Arch, ...]:
    """Networks of every cost, and as many drawn uniformly: those whose predictions are to be good."""
    return _drawn(space, POOL, seed)


def _drawn(space: Measurable, count: int, seed: int) -> tuple[Arch, ...]:
    """Up to `count` networks of every cost, and as many drawn uniformly."""
    return tuple(
        dict.fromkeys(arch for stream in (CALIBRATION_STREAM, USE_STREAM) for arch in draw(space, count, seed, stream))
    )
