"""How the sum of a network's rows becomes a prediction with a band, judged on networks held out of the solve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, theilslopes

from nas.solve import RowSystem
from nas.table_file import Calibration

__all__ = ["COVERAGE", "calibrate"]

COVERAGE = 0.9  # share of new networks that the band is to hold
EARNS = 0.8  # more than a scale is used only where it lowers the held-out error to this share: it rests on few networks
FOLDS = 8  # parts of the networks that are held out one after the other

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Fit:
    """Milliseconds are `offset + scale * (sum + more * part)`, the part being the sum of the rows of a kind."""

    offset: float = 0.0
    scale: float = 1.0
    more: float = 0.0

    def predict(self, sums: Floats, parts: Floats) -> Floats:
        out: Floats = self.offset + self.scale * (sums + self.more * parts)
        return out


Fitting = Callable[[Floats, Floats, Floats], _Fit]
"""(networks,) sums, parts, and measured ms -> the fit."""


def _scale(sums: Floats, parts: Floats, ms: Floats) -> _Fit:
    return _Fit(scale=float(np.median(ms / sums)))


def _affine(sums: Floats, parts: Floats, ms: Floats) -> _Fit:
    slope, offset, *_ = theilslopes(ms, sums)
    return _Fit(float(offset), float(slope))


def _by_kind(sums: Floats, parts: Floats, ms: Floats) -> _Fit:
    features = np.stack([sums, parts], axis=1) / ms[:, None]
    scale, extra = np.linalg.lstsq(features, np.ones(len(ms)), rcond=None)[0]
    return _Fit(scale=float(scale), more=max(-0.9, float(extra / scale)))


def calibrate(system: RowSystem, ms: Floats, nets: NDArray[np.intp]) -> Calibration:
    """Fit on the networks `nets` of the system, each priced by rows solved without it.

    A scale, the median of measured over summed. Where one earns its place, the robust line of Theil and Sen instead, or a factor
    for the rows of one kind besides: what they take more between other blocks than in chains of their own. Errors are held out
    twice: the network enters neither the rows nor the fit that predict it. The band is that of a new network, were the errors
    normal: the extremes of few errors would say less.

    Args:
        system: all networks.
        ms: their measured times.
        nets: indices of the calibration networks, at least three.
    """
    assert len(nets) >= 3
    everything = np.arange(len(ms))
    folds = [np.arange(first, len(nets), FOLDS) for first in range(min(FOLDS, len(nets)))]
    kinds = sorted({row.op for row in system.rows})
    member = np.array([[row.op == kind for kind in kinds] for row in system.rows], dtype=float)
    parts = np.empty((len(nets), len(kinds)))  # each network's sum of rows, kind by kind
    for fold in folds:
        rows = system.solve(ms, np.setdiff1d(everything, nets[fold]))
        parts[fold] = (system.counts[nets[fold]] * rows) @ member
    sums, measured, nothing = parts.sum(1), ms[nets], np.zeros(len(nets))
    usual: tuple[Fitting, Floats, str] = (_scale, nothing, "")
    ways = [usual, (_affine, nothing, ""), *((_by_kind, parts[:, i], kind) for i, kind in enumerate(kinds))]
    errors = [_held_out(fit, folds, sums, part, measured) for fit, part, _ in ways]
    amounts = [float(np.abs(error).mean()) for error in errors]
    best = int(np.argmin(amounts))
    best = best if amounts[best] < EARNS * amounts[0] else 0
    (fit, part, kind), error = ways[best], errors[best]
    fitted = fit(sums, part, measured)
    over = 1 / (1 + error)  # measured over predicted
    half = t.ppf(0.5 + COVERAGE / 2, len(nets) - 1) * over.std(ddof=1) * np.sqrt(1 + 1 / len(nets))
    return Calibration(
        offset=fitted.offset,
        scale=fitted.scale,
        low=float(np.clip(over.mean() - half, 0.0, 1.0)),
        high=float(max(over.mean() + half, 1.0)),
        heldout_mape=float(np.abs(error).mean()),
        heldout_within_5pct=float((np.abs(error) <= 0.05).mean()),
        nets=len(nets),
        kind=kind,
        factor=1 + fitted.more,
    )


def _held_out(fit: Fitting, folds: list[NDArray[np.intp]], sums: Floats, parts: Floats, ms: Floats) -> Floats:
    """Predicted over measured, less 1, of each network by a fit without its fold."""
    errors = np.empty(len(ms))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(ms)), fold)
        errors[fold] = fit(sums[rest], parts[rest], ms[rest]).predict(sums[fold], parts[fold]) / ms[fold] - 1
    return errors
