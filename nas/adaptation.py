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

__all__ = ["NETS", "Adapted", "adapt", "check_sources", "choose_nets"]

NETS = 40  # networks to time unless told: with 20, one target of six has nine of ten within 5%, with 40 all
FEWEST = 8  # below which the held-out errors say nothing
POOL = 150  # networks of every cost, and as many drawn uniformly, whose predictions are to be good
WIDE = 800  # of both, to choose from
LEAST_NOISE = 0.02  # of a network's time, however well it is measured: rows do not quite add up
P10, P50_MAD = 1.2816, 0.6745  # of a normal distribution, in standard deviations

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Fit:
    """The new columns: the mean over all strengths, and how uncertain it is."""

    ms: Floats  # (columns,)
    deviation: Floats  # (columns,) standard deviation, ms


def _fit(prices: Prices, likeness: Likeness, counts: Floats, ms: Floats, noise: float) -> _Fit:
    """New columns from the times (networks,) of networks with `counts`; `noise` is relative."""
    prior = Prior.of(prices, likeness, counts, ms)
    relative = counts / ms[:, None]
    rest = 1 - relative @ prior.start
    covariances, squares = prior.covariances(relative), prior.squares()
    found, spread, density = [], [], []
    for strengths in every_strength(len(prices.ms)):
        gain = np.tensordot(strengths.variances, covariances, 1)  # (columns, networks)
        inverse = np.linalg.inv(relative @ gain + noise**2 * np.eye(len(ms)))
        found.append(prior.start + gain @ (inverse @ rest))
        spread.append(strengths.variances @ squares - ((gain @ inverse) * gain).sum(1))
        left_out = 1 / np.diag(inverse)  # each network's variance by the others; times `inverse @ rest`, its error
        density.append(-0.5 * float((np.square(inverse @ rest) * left_out + np.log(left_out)).sum()))
    weights = np.exp(np.array(density) - max(density))
    weights /= weights.sum()
    mean = weights @ np.array(found)
    variance = weights @ (np.array(spread) + np.square(np.array(found) - mean))
    mean[:-EXTRA] = np.maximum(mean[:-EXTRA], 0.0)
    return _Fit(mean, np.sqrt(np.maximum(variance, 0.0)))


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
    visits: Sequence[int] | None = None,
) -> Adapted:
    """The rows of `sources` on a new target, from whole networks' times there.

    The band and the held-out errors are those of fits that never saw the network, strengths included.

    Args:
        sources: tables that have all rows of the networks between them; factors and the one scale compare with the first.
        archs: the networks, at least three; `choose_nets` says which tell most.
        ms: (networks,) their times on the new target.
        noise: relative noise of a time.
        visits: of each network, to be counted in the rows.
    """
    assert len(archs) == len(ms) >= 3
    prices, noise = Prices.of(sources), max(noise, LEAST_NOISE)
    likeness, counts = Likeness.of(prices.keys), prices.counts(archs)
    ratios = ms / (counts @ prices.ms[0])
    errors, by_scale = np.empty(len(ms)), np.empty(len(ms))
    for i in range(len(ms)):
        others = np.arange(len(ms)) != i
        errors[i] = counts[i] @ _fit(prices, likeness, counts[others], ms[others], noise).ms / ms[i] - 1
        by_scale[i] = np.median(ratios[others]) / ratios[i] - 1
    fit = _fit(prices, likeness, counts, ms, noise)
    times = (counts > 0).T @ np.array(visits if visits is not None else [0] * len(ms))
    rows = {
        key: _row_time(float(fit.ms[i]), float(fit.deviation[i]), int(times[i])) for i, key in enumerate(prices.keys)
    }
    calibration = banded(errors, offset=float(fit.ms[-1]))
    return Adapted(rows, calibration, _factors(prices, fit), float(np.median(ratios)), float(np.abs(by_scale).mean()))


def _row_time(ms: float, deviation: float, visits: int) -> RowTime:
    return RowTime(ms, ms, max(0.0, ms - P10 * deviation), ms + P10 * deviation, P50_MAD * deviation, visits)


def _factors(prices: Prices, fit: _Fit) -> dict[str, float]:
    kinds = np.array([key.partition("@")[0] for key in prices.keys])
    rows, new = prices.ms[0, :-EXTRA], fit.ms[:-EXTRA]
    return {str(kind): float(new[kinds == kind].sum() / rows[kinds == kind].sum()) for kind in np.unique(kinds)}


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
    pool = _drawn(space, POOL, seed)
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


def _drawn(space: Measurable, count: int, seed: int) -> tuple[Arch, ...]:
    """Up to `count` networks of every cost, and as many drawn uniformly."""
    return tuple(
        dict.fromkeys(arch for stream in (CALIBRATION_STREAM, USE_STREAM) for arch in draw(space, count, seed, stream))
    )
