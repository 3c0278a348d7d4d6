"""From the times of whole networks to the times of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from search_spaces.arch import Arch
from search_spaces.blocks import Row

__all__ = ["RIDGE", "RowSystem", "row_macs"]

RIDGE = 1e-4  # weight of the prior: it decides only what the measurements leave open

Floats = NDArray[np.float64]


def row_macs(archs: Sequence[Arch]) -> dict[Row, int]:
    """Multiply-accumulates of the rows of networks, where their blocks tell them apart."""
    steps = dict.fromkeys(step for arch in archs for step in arch.steps())
    return {
        row: work
        for spec, state in steps
        for row, work in zip(spec.rows(state), spec.row_macs(state), strict=True)
        if work is not None
    }


def _row_macs(rows: Sequence[Row], archs: Sequence[Arch]) -> Floats:
    """Multiply-accumulates of each row, estimated where its block does not tell.

    Then each block's are shared out: a row takes a factor of its kind times places times all its widths, and the factors are fitted to
    the blocks.
    """
    volumes = np.array([row.positions * np.prod([value for _, value in row.dims], dtype=float) for row in rows])
    kinds = {op: i for i, op in enumerate(sorted({row.op for row in rows}))}
    at = {row: i for i, row in enumerate(rows)}
    steps = {step for arch in archs for step in arch.steps()}
    features = []
    for spec, state in steps:
        macs = spec.macs(state)
        if macs:
            feature = np.zeros(len(kinds))
            for row in spec.rows(state):
                feature[kinds[row.op]] += volumes[at[row]] / macs
            features.append(feature)
    factors = nnls(np.array(features), np.ones(len(features)))[0]
    estimated, told = volumes * np.array([factors[kinds[row.op]] for row in rows]), row_macs(archs)
    return np.array([told.get(row, work) for row, work in zip(rows, estimated, strict=True)], dtype=float)


@dataclass(frozen=True)
class RowSystem:
    """Networks as counts of rows, some of which have known times.

    Row times are the non-negative least squares of relative errors. Rows that always come together, as a block's two
    halves do, are told apart by a prior: the same constant for every row plus a rate times its multiply-accumulates.
    """

    rows: tuple[Row, ...]  # unknown and known
    counts: Floats  # (networks, rows)
    macs: Floats  # (rows,)
    known: Floats  # (rows,) ms; NaN where unknown

    @staticmethod
    def of(archs: Sequence[Arch], known: Mapping[str, float]) -> "RowSystem":
        """The system of `archs`; `known` gives the ms of some rows, by key."""
        rows = tuple(sorted({row for arch in archs for row in arch.rows}))
        at = {row: i for i, row in enumerate(rows)}
        counts = np.zeros((len(archs), len(rows)))
        for i, arch in enumerate(archs):
            for row in arch.rows:
                counts[i, at[row]] += 1
        return RowSystem(rows, counts, _row_macs(rows, archs), np.array([known.get(row.key, np.nan) for row in rows]))

    def solve(self, ms: Floats, use: NDArray[np.intp] | None = None, ridge: float = RIDGE) -> Floats:
        """Times of all rows (rows,) from the networks' times (networks,), or from those of the networks `use` alone.

        The weight `ridge` of the prior is the networks' relative noise where a row is as uncertain as it is long.
        """
        chosen = np.arange(len(ms)) if use is None else use
        relative = self.counts[chosen] / ms[chosen, None]
        prior = self._prior(relative)
        unknown = np.isnan(self.known)
        rest = 1 - relative[:, ~unknown] @ self.known[~unknown]
        scaled = relative[:, unknown] * prior[unknown]
        system = np.vstack([scaled, ridge * np.eye(scaled.shape[1])])
        times = self.known.copy()
        times[unknown] = prior[unknown] * nnls(system, np.concatenate([rest, np.full(scaled.shape[1], ridge)]))[0]
        return times

    def _prior(self, relative: Floats) -> Floats:
        """(rows,) ms: a constant and a rate per multiply-accumulate, fitted to the networks."""
        features = np.stack([np.ones(len(self.rows)), self.macs / max(self.macs.max(), 1)], axis=1)
        fitted: Floats = features @ nnls(relative @ features, np.ones(len(relative)))[0]
        floor: float = 1e-3 * fitted.max()
        return np.maximum(fitted, floor)

    def price(self, times: Floats) -> Floats:
        """Sum of row times of each network (networks,)."""
        out: Floats = self.counts @ times
        return out
