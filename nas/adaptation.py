"""A new target's rows from another table's and the times of a few whole networks.

Twenty networks cannot tell hundreds of rows apart, and one scale for all of them is wrong: operators gain unequally from
threads or int8, and an eager runtime adds a constant to each. So a new row is the old one times a factor, plus a constant,
and what is unknown of both is shared: by all rows, by a kind of row, by a kind at one number of positions, by rows of like
length; a little is each row's own. All of it is estimated at once by least squares of relative errors, each part shrunk
towards one scale for all by a ridge of its own (Bayesian linear regression). How strong the ridges are is told by leaving
one network out, in closed form; rather than the best strengths, their mean is taken, weighted by the density that they give
the networks left out. `benchmarks/adaptation_study.py` judges this on ten kinds of targets whose truth is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nas.calibration import banded
from nas.latency import LatencyTable
from nas.plan import CALIBRATION_STREAM, USE_STREAM, draw, rows_to_time
from nas.table_file import Calibration, RowTime
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.space import Measurable

__all__ = ["NETS", "Adapted", "adapt", "check_source", "choose_nets"]

NETS = 20  # networks to time unless told
FEWEST = 8  # below which the held-out errors say nothing
POOL = 150  # networks of every cost, and as many drawn uniformly, to choose from
EXTRA = 1  # columns behind the rows: a network as such
ROW = 0.05  # a row's own deviation, as a share of it
SHORT = 0.1  # of the mean row: shorter rows are of like length
APART = 3.0  # mean rows that a network as such may take, where a row may take a constant of one
LEAST_NOISE = 0.02  # of a network's time, however well it is measured: rows do not quite add up
P10, P50_MAD = 1.2816, 0.6745  # of a normal distribution, in standard deviations

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Strengths:
    """How unlike the old table the new one may be: standard deviations."""

    kind: float  # of the factor of a kind of row
    alike: float  # of the factor that rows of a kind at one number of positions share, and of those of like length
    constant: float  # of the constant of all rows, and of a kind; in mean rows

    @property
    def variances(self) -> Floats:
        """(parts,) of the weights of each part of a basis, by which it is shrunk towards 0."""
        out: Floats = np.square([1.0, self.kind, self.alike / np.sqrt(2), self.constant, ROW])
        return out


EVERY = tuple(_Strengths(*one) for one in product((0.03, 0.1, 0.3, 0.8), (0.02, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)))
USUAL = _Strengths(0.3, 0.1, 0.3)  # before anything is measured


@dataclass(frozen=True)
class _Prices:
    """What the old table charges for each column: its rows, and a network as such."""

    keys: tuple[str, ...]  # of the rows
    ms: Floats  # (columns,)

    @staticmethod
    def of(table: LatencyTable) -> "_Prices":
        calibration, rows = table.content.calibration, table.rows
        ms = [calibration.scale * row.ms for row in rows.values()]
        return _Prices(tuple(rows), np.array([*ms, calibration.offset]))

    def counts(self, archs: Sequence[Arch]) -> Floats:
        """(networks, columns) how often each network has each column."""
        at = {key: i for i, key in enumerate(self.keys)}
        out = np.zeros((len(archs), len(self.ms)))
        for i, arch in enumerate(archs):
            for row in arch.rows:
                out[i, at[row.key]] += 1
            out[i, -1] = 1
        return out


@dataclass(frozen=True)
class _Basis:
    """Ways in which new columns may differ from one scale for all: `start` plus `ways @ weights` of every part."""

    start: Floats  # (columns,) ms by that one scale
    parts: tuple[Floats, ...]  # (columns, weights) ms for a weight of 1; one part for each of a strength's variances

    @staticmethod
    def of(prices: _Prices, counts: Floats, ms: Floats) -> "_Basis":
        start = np.median(ms / (counts @ prices.ms)) * prices.ms
        rows = start[:-EXTRA]
        mean_row = float((counts[:, :-EXTRA] @ rows).sum() / counts[:, :-EXTRA].sum())
        kinds = _members([key.partition("@")[0] for key in prices.keys])
        places = _members([key.partition("[")[0] for key in prices.keys])
        lengths = _hats(np.log(np.maximum(rows, SHORT * mean_row)))
        constants = np.pad(np.hstack([np.ones((len(rows), 1)), kinds]), ((0, EXTRA), (0, EXTRA)))
        constants[-1, -1] = APART

        def factors(members: Floats) -> Floats:
            return np.pad(rows[:, None] * members, ((0, EXTRA), (0, 0)))

        alike, own = np.hstack([places, lengths]), np.eye(len(rows))
        return _Basis(start, (start[:, None], factors(kinds), factors(alike), mean_row * constants, factors(own)))

    def covariances(self, relative: Floats) -> Floats:
        """(parts, columns, networks) of columns with networks of counts `relative`, where weights have variance 1."""
        return np.array([ways @ (relative @ ways).T for ways in self.parts])

    def squares(self) -> Floats:
        """(parts, columns) variances of columns, where weights have variance 1."""
        return np.array([np.square(ways).sum(1) for ways in self.parts])


def _members(names: Sequence[str]) -> Floats:
    """(names, different names) 1 where a name is that one."""
    out: Floats = (np.array(names)[:, None] == np.unique(names)).astype(np.float64)
    return out


def _hats(values: Floats) -> Floats:
    """(values, knots) weights of the knots, 1 apart, between which each value lies."""
    knots = np.arange(np.floor(values.min()), np.ceil(values.max()) + 1)
    out: Floats = np.maximum(0.0, 1 - np.abs(values[:, None] - knots))
    return out


@dataclass(frozen=True)
class _Fit:
    """The new columns: the mean over all strengths, and how uncertain it is."""

    ms: Floats  # (columns,)
    deviation: Floats  # (columns,) standard deviation, ms


def _fit(prices: _Prices, counts: Floats, ms: Floats, noise: float) -> _Fit:
    """New columns from the times (networks,) of networks with `counts`; `noise` is relative."""
    basis = _Basis.of(prices, counts, ms)
    relative = counts / ms[:, None]
    rest = 1 - relative @ basis.start
    covariances, squares = basis.covariances(relative), basis.squares()
    found, spread, density = [], [], []
    for strengths in EVERY:
        gain = np.tensordot(strengths.variances, covariances, 1)  # (columns, networks)
        inverse = np.linalg.inv(relative @ gain + noise**2 * np.eye(len(ms)))
        found.append(basis.start + gain @ (inverse @ rest))
        spread.append(strengths.variances @ squares - ((gain @ inverse) * gain).sum(1))
        left_out = 1 / np.diag(
            inverse
        )  # variance of each network by the others; its error is this times inverse @ rest
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
    factors: Mapping[str, float]  # new over old ms of all rows of a kind together
    one_scale: float  # were all rows scaled alike: new over old ms, for comparison,
    one_scale_mape: float  # and its held-out error


def adapt(
    source: LatencyTable, archs: Sequence[Arch], ms: Floats, noise: float, visits: Sequence[int] | None = None
) -> Adapted:
    """The rows of `source` on a new target, from whole networks' times there.

    The band and the held-out errors are those of fits that never saw the network, strengths included.

    Args:
        source: a table with all rows of the networks.
        archs: the networks, at least three; `choose_nets` says which tell most.
        ms: (networks,) their times on the new target.
        noise: relative noise of a time.
        visits: of each network, to be counted in the rows.
    """
    assert len(archs) == len(ms) >= 3
    prices, noise = _Prices.of(source), max(noise, LEAST_NOISE)
    counts = prices.counts(archs)
    ratios = ms / (counts @ prices.ms)
    errors, by_scale = np.empty(len(ms)), np.empty(len(ms))
    for i in range(len(ms)):
        others = np.arange(len(ms)) != i
        errors[i] = counts[i] @ _fit(prices, counts[others], ms[others], noise).ms / ms[i] - 1
        by_scale[i] = np.median(ratios[others]) / ratios[i] - 1
    fit = _fit(prices, counts, ms, noise)
    times = (counts > 0).T @ np.array(visits if visits is not None else [0] * len(ms))
    rows = {
        key: _row_time(float(fit.ms[i]), float(fit.deviation[i]), int(times[i])) for i, key in enumerate(prices.keys)
    }
    calibration = banded(errors, offset=float(fit.ms[-1]))
    return Adapted(rows, calibration, _factors(prices, fit), float(np.median(ratios)), float(np.abs(by_scale).mean()))


def _row_time(ms: float, deviation: float, visits: int) -> RowTime:
    return RowTime(ms, ms, max(0.0, ms - P10 * deviation), ms + P10 * deviation, P50_MAD * deviation, visits)


def _factors(prices: _Prices, fit: _Fit) -> dict[str, float]:
    kinds = np.array([key.partition("@")[0] for key in prices.keys])
    rows, new = prices.ms[:-EXTRA], fit.ms[:-EXTRA]
    return {str(kind): float(new[kinds == kind].sum() / rows[kinds == kind].sum()) for kind in np.unique(kinds)}


def check_source(source: LatencyTable, space: Measurable, thresholds: bool = True) -> None:
    """Refuse a table that the space's networks cannot be adapted from, those with `thresholds` only where the new target runs them.

    Raises:
        InputError: it is of another space, or lacks rows.
    """
    if source.content.space != space.name:
        raise InputError(f"{source.path.name} is of the space {source.content.space}; --from needs one of {space.name}")
    lacking = source.unmeasured(rows_to_time(space, thresholds))
    if lacking:
        known = ", ".join(map(str, source.content.classes))
        raise InputError(
            f"{source.path.name} lacks {len(lacking)} rows of {space.name} with {space.classes} classes, such as "
            f"{lacking[0].key}; it was measured with {known} classes: pass --classes, or another table to --from"
        )


def choose_nets(source: LatencyTable, space: Measurable, count: int, seed: int) -> tuple[Arch, ...]:
    """The networks whose times would tell most about the others, chosen one after the other; none from the validation's stream.

    Each is the one of a pool that, timed beside those chosen before, leaves the least variance in the predictions for the
    whole pool.

    Raises:
        InputError: `count` is below eight, or the space has fewer networks to draw.
    """
    if count < FEWEST:
        raise InputError(f"--nets must be at least {FEWEST}, got {count}: fewer do not tell how good the new table is")
    pool = tuple(
        dict.fromkeys(arch for stream in (CALIBRATION_STREAM, USE_STREAM) for arch in draw(space, POOL, seed, stream))
    )
    if len(pool) < count:
        raise InputError(f"--nets asks for {count} networks, and {len(pool)} were found in {space.name}; lower --nets")
    prices = _Prices.of(source)
    counts = prices.counts(pool)
    ms = counts @ prices.ms
    basis = _Basis.of(prices, counts, ms)
    relative = counts / ms[:, None]
    unknown = relative @ np.tensordot(
        USUAL.variances, basis.covariances(relative), 1
    )  # (pool, pool), of relative errors
    chosen: list[int] = []
    for _ in range(count):
        own = np.diag(unknown) + LEAST_NOISE**2
        gain = np.square(unknown).sum(0) / own
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        told = unknown[:, chosen[-1]]
        unknown = unknown - np.outer(told, told) / own[chosen[-1]]
    return tuple(pool[i] for i in chosen)
