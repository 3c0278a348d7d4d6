"""How the sum of a network's rows becomes a prediction with a band, judged on networks held out of the solve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, theilslopes

from nas.correction import Moved
from nas.solve import RowSystem
from nas.table_file import Calibration

__all__ = ["COVERAGE", "banded", "calibrate"]

COVERAGE = 0.9  # share of new networks that the band is to hold
EARNS = 0.8  # more than a scale is used only where it lowers the held-out error to this share: it rests on few networks
STILL = Moved()
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


def calibrate(system: RowSystem, rows: Mapping[str, float], measured: Floats, moved: Moved = STILL) -> Calibration:
    """Fit on the networks of a system, from whose times the rows were not solved.

    A scale, the median of measured over summed. Where one earns its place, the robust line of Theil and Sen instead, or a factor
    for the rows of one kind besides: what they take more between other blocks than in chains of their own. Errors are held out:
    the network does not enter the fit that predicts it. The band is that of a new network on another occasion, were the errors
    normal: the extremes of few errors would say less.

    Args:
        system: the calibration networks, at least three.
        rows: ms by key.
        measured: (networks,) their times.
        moved: how far their times went between two sittings.
    """
    count = len(measured)
    assert count >= 3
    folds = [np.arange(first, count, FOLDS) for first in range(min(FOLDS, count))]
    kinds = sorted({row.op for row in system.rows})
    member = np.array([[row.op == kind for kind in kinds] for row in system.rows], dtype=float)
    parts = (
        system.counts * [rows[row.key] for row in system.rows]
    ) @ member  # each network's sum of rows, kind by kind
    sums, nothing = parts.sum(1), np.zeros(count)
    usual: tuple[Fitting, Floats, str] = (_scale, nothing, "")
    ways = [usual, (_affine, nothing, ""), *((_by_kind, parts[:, i], kind) for i, kind in enumerate(kinds))]
    errors = [_held_out(fit, folds, sums, part, measured) for fit, part, _ in ways]
    amounts = [float(np.abs(error).mean()) for error in errors]
    fits = [fit(sums, part, measured) for fit, part, _ in ways]
    earning = [i for i, fitted in enumerate(fits) if amounts[i] < EARNS * amounts[0] and fitted.scale > 0]
    best = min(earning, key=lambda i: amounts[i], default=0)
    fitted, (_, _, kind), error = fits[best], ways[best], errors[best]
    # A sitting has half of `moved` squared as its variance, and the mean of two, that the errors are of, a quarter. What each network
    # does is in the errors by that quarter, and a new sitting has a half; what all do together is in the scale instead, and in no error.
    beyond = 0.25 * moved.apart**2 + 0.75 * moved.together**2
    return banded(
        error,
        beyond=beyond,
        offset=fitted.offset,
        scale=fitted.scale,
        kind=kind,
        factor=1 + fitted.more,
        moved=moved.each,
    )


def banded(
    errors: Floats,
    *,
    beyond: float = 0.0,
    likely: Floats | float = 1.0,
    offset: float,
    scale: float = 1.0,
    kind: str = "",
    factor: float = 1.0,
    moved: float = 0.0,
) -> Calibration:
    """The calibration with the band of a new network; `errors` are held out, predicted over measured less 1.

    `beyond` is what variance of measured over predicted is not in them, `likely` (networks,) how large an error to expect of a new
    network, over what was to be expected of each of these. The rest is the calibration's own.
    """
    over = 1 / (1 + likely * errors)  # measured over predicted
    variance = over.var(ddof=1) * (1 + 1 / len(errors)) + beyond
    half = t.ppf(0.5 + COVERAGE / 2, len(errors) - 1) * np.sqrt(variance)
    return Calibration(
        offset=offset,
        scale=scale,
        low=float(np.clip(over.mean() - half, 0.0, 1.0)),
        high=float(max(over.mean() + half, 1.0)),
        heldout_mape=float(np.abs(errors).mean()),
        heldout_within_5pct=float((np.abs(errors) <= 0.05).mean()),
        nets=len(errors),
        kind=kind,
        factor=factor,
        moved=moved,
    )


def _held_out(fit: Fitting, folds: list[NDArray[np.intp]], sums: Floats, parts: Floats, ms: Floats) -> Floats:
    """Predicted over measured, less 1, of each network by a fit without its fold."""
    errors = np.empty(len(ms))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(ms)), fold)
        errors[fold] = fit(sums[rest], parts[rest], ms[rest]).predict(sums[fold], parts[fold]) / ms[fold] - 1
    return errors
