"""What a new target's rows may be, before any network is timed there: told by the tables of other targets.

Each table is put at the new target's speed, and the mean of them is where all starts. From it rows may differ: they follow
some tables more than others, all rows alike or kind by kind; kinds gain unequally, as such, at a number of positions, or rows
of like shape alike; rows of one shape, and each by itself, deviate; and operators cost a constant. One form has room for all: the covariance of
two rows is the product of their amplitudes, times how alike they are. `benchmarks/adaptation_study.py` judges the figures.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nas.latency import LatencyTable
from search_spaces.arch import Arch

__all__ = ["EXTRA", "USUAL", "Likeness", "Prices", "Prior", "Strengths", "every_strength"]

EXTRA = 1  # columns behind the rows: a network as such
OCTAVES = 2.0  # apart in shape, rows of a kind gain quite unequally
APART = 3.0  # mean rows that a network as such may take, where a row may take a constant of one

SHARES, CONSTANTS = (0.5, 1.0, 2.0), (0.4, 1.0, 2.5)  # times as strong as usual

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Strengths:
    """How unlike the tables a new target may be: standard deviations, shares of a row unless told."""

    source: float  # of the weight of a table's difference from the mean of all
    source_kind: float  # of the same weight, a kind of row for itself
    kind: float  # of the factor of a kind
    place: float  # of the factor of a kind at one number of positions
    near: float  # of the factor of a kind, which rows of like shape share
    shape: float  # of the factor of one shape at all positions, times the root of its kind's rows: few are less alike
    row: float  # of a row's own factor, likewise
    constant: float  # of the constant of all rows, and of a kind; in mean rows

    @property
    def variances(self) -> Floats:
        """(parts,) of the parts of a `Prior`, the scale of all rows first."""
        out: Floats = np.square([1.0, *astuple(self)])
        return out


USUAL = Strengths(source=0.18, source_kind=0.16, kind=0.11, place=0.0, near=0.11, shape=0.27, row=0.15, constant=0.29)


def _strengths(factors: float, constant: float, kind: float, place: float) -> Strengths:
    """The usual ones, shares of a row and the constant so many times as strong; the factors of a kind, and at a place, as told."""
    return Strengths(
        **{name: factors * share for name, share in asdict(USUAL).items() if name not in ("kind", "place", "constant")},
        constant=constant * USUAL.constant,
        kind=kind,
        place=place,
    )


SEVERAL = tuple(_strengths(*one, USUAL.kind, USUAL.place) for one in product(SHARES, CONSTANTS))
ONE = tuple(_strengths(*one) for one in product(SHARES, CONSTANTS, (0.03, 0.8), (0.0, 0.2)))


def every_strength(tables: int) -> tuple[Strengths, ...]:
    """Those to weigh against each other; one table does not tell whether kinds differ at all, or by far."""
    return SEVERAL if tables > 1 else ONE


@dataclass(frozen=True)
class Prices:
    """What tables charge for each column: the rows that any of them has, and a network as such."""

    keys: tuple[str, ...]  # of the rows
    ms: Floats  # (tables, columns), a table's lacking rows as the mean of the others, put at its speed, has them

    @staticmethod
    def of(tables: Sequence[LatencyTable]) -> "Prices":
        keys = tuple(dict.fromkeys(key for table in tables for key in table.rows))
        ms = np.full((len(tables), len(keys) + EXTRA), np.nan)
        for prices, table in zip(ms, tables, strict=True):
            calibration, rows = table.content.calibration, table.rows
            prices[:-EXTRA] = [calibration.scale * rows[key].ms if key in rows else np.nan for key in keys]
            prices[-1] = calibration.offset
        return Prices(keys, _filled(ms))

    def counts(self, archs: Sequence[Arch]) -> Floats:
        """(networks, columns) how often each network has each column."""
        at = {key: i for i, key in enumerate(self.keys)}
        out = np.zeros((len(archs), self.ms.shape[1]))
        for i, arch in enumerate(archs):
            for row in arch.rows:
                out[i, at[row.key]] += 1
            out[i, -1] = 1
        return out


def _filled(ms: Floats) -> Floats:
    """(tables, columns) without gaps; tables are compared by the columns that each shares with the first."""
    has = ~np.isnan(ms)
    given = np.where(has, ms, 0.0)
    both = has & has[0]
    assert both.any(1).all(), "tables of one space share rows"
    speed = (both * given[0]).sum(1) / (both * given).sum(1)
    mean = (speed[:, None] * given).sum(0) / has.sum(0)
    return np.where(has, ms, mean / speed[:, None])


@dataclass(frozen=True)
class Likeness:
    """How alike columns are, each (columns, columns); a network as such is like no row."""

    kind: Floats  # 1 where they are of one kind
    place: Floats  # of one kind, at equal positions
    near: Floats  # of one kind, the less the more octaves their shapes are apart
    shape: Floats  # of one kind and shape, whatever the positions
    row: Floats  # the same row
    constant: Floats  # both, or both of one kind

    @staticmethod
    def of(keys: Sequence[str]) -> "Likeness":
        kinds = np.array([key.partition("@")[0] for key in keys])
        places = np.array([key.partition("[")[0] for key in keys])
        shapes = np.array([re.sub(r"@\d+", "", key) for key in keys])
        kind = _same(kinds)
        few = kind / kind.sum(1)  # over the number of rows of the kind
        lengths = _octaves(keys)
        apart = np.square(lengths[:, None] - lengths).sum(2)
        near = kind * np.exp(-apart / (2 * OCTAVES**2))
        rows = (kind, _same(places), near, few * _same(shapes), few * np.eye(len(keys)))
        alike = [np.pad(one, (0, EXTRA)) for one in rows]
        constant = np.pad(1 + kind, (0, EXTRA))
        constant[-1, -1] = 1.0
        alike.append(constant)
        return Likeness(*alike)


def _same(names: NDArray[np.str_]) -> Floats:
    """(names, names) 1 where two are equal."""
    out: Floats = (names[:, None] == names).astype(np.float64)
    return out


def _octaves(keys: Sequence[str]) -> Floats:
    """(rows, 2 features a size) its logarithm, where a row lacks it the mean of those that have it; and whether it has it."""
    rows = [dict(re.findall(r"(\w+)=(\d+)", key), positions=key.partition("@")[2].partition("[")[0]) for key in keys]
    names = sorted({name for row in rows for name in row})
    sizes = np.array([[float(row.get(name, "nan")) for name in names] for row in rows])
    lengths = np.log2(np.maximum(sizes, 1.0))
    has = ~np.isnan(lengths)
    return np.hstack([np.where(has, lengths, np.nanmean(lengths, 0)), has])


@dataclass(frozen=True)
class Prior:
    """New columns are `start` and a deviation of each part: its variance times its amplitudes' products times `alike`."""

    start: Floats  # (columns,) ms: the tables' mean, each at the new target's speed
    parts: tuple[tuple[Floats, Floats], ...]  # amplitudes (n, columns), ms; alike (columns, columns)

    @staticmethod
    def of(prices: Prices, likeness: Likeness, counts: Floats, ms: Floats) -> "Prior":
        """That of a target where networks of `counts` take `ms` (networks,)."""
        scales = np.median(ms / (prices.ms @ counts.T), axis=1)
        scaled = scales[:, None] * prices.ms
        start = scaled.mean(0)
        rows, differing = start[None], scaled - start
        mean_row = float((counts[:, :-EXTRA] @ start[:-EXTRA]).sum() / counts[:, :-EXTRA].sum())
        constants = np.full_like(rows, mean_row)
        constants[:, -1] *= APART
        every = np.ones_like(likeness.kind)
        parts = (
            (rows, every),
            (differing, every),
            (differing, likeness.kind),
            (rows, likeness.kind),
            (rows, likeness.place),
            (rows, likeness.near),
            (rows, likeness.shape),
            (rows, likeness.row),
            (constants, likeness.constant),
        )
        return Prior(start, parts)

    def covariances(self, relative: Floats) -> Floats:
        """(parts, columns, networks) of columns with networks of counts `relative`, where each part's variance is 1."""
        return np.array([sum(a[:, None] * (alike @ (a * relative).T) for a in many) for many, alike in self.parts])

    def squares(self) -> Floats:
        """(parts, columns) variances of columns, where each part's variance is 1."""
        return np.array([np.square(many).sum(0) * np.diag(alike) for many, alike in self.parts])
