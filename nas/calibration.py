"""How the sum of a network's rows becomes a prediction with a band, judged on networks held out of the solve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, theilslopes

from nas.solve import RowSystem
from nas.table_file import Calibration

__all__ = ["COVERAGE", "banded", "calibrate"]

COVERAGE = 0.9  # share of new networks that the band is to hold
EARNS = 0.8  # more than a scale is used only where it lowers the held-out error to this share: it rests on few networks
FOLDS = 8  # parts of the networks that are held out one after the other

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Fit:
    """Milliseconds are `offset + scale * sum + per_million * size`."""

    offset: float
    scale: float
    per_million: float

    def predict(self, sums: Floats, sizes: Floats) -> Floats:
        out: Floats = self.offset + self.scale * sums + self.per_million * sizes
        return out


def _scale(sums: Floats, sizes: Floats, ms: Floats) -> _Fit:
    return _Fit(0.0, float(np.median(ms / sums)), 0.0)


def _affine(sums: Floats, sizes: Floats, ms: Floats) -> _Fit:
    slope, offset, *_ = theilslopes(ms, sums)
    return _Fit(float(offset), float(slope), 0.0)


def _by_size(sums: Floats, sizes: Floats, ms: Floats) -> _Fit:
    features = np.stack([sums, sizes], axis=1) / ms[:, None]
    scale, per_million = np.linalg.lstsq(features, np.ones(len(ms)), rcond=None)[0]
    return _Fit(0.0, float(scale), float(per_million))


FITS: tuple[Callable[[Floats, Floats, Floats], _Fit], ...] = (_scale, _affine, _by_size)


def calibrate(system: RowSystem, ms: Floats, nets: NDArray[np.intp], sizes: Floats) -> Calibration:
    """Fit on the networks `nets` of the system, each priced by rows solved without it.

    A scale, the median of measured over summed. Where one earns its place, the robust line of Theil and Sen instead, or a time
    for each million parameters besides: what the rows do not know is how much of a whole network's weights the caches hold.
    Errors are held out twice: the network enters neither the rows nor the fit that predict it. The band is that of a new
    network, were the errors normal: the extremes of few errors would say less.

    Args:
        system: all networks.
        ms: their measured times.
        nets: indices of the calibration networks, at least three.
        sizes: millions of parameters of each of `nets`.
    """
    assert len(nets) >= 3
    everything = np.arange(len(ms))
    folds = [np.arange(first, len(nets), FOLDS) for first in range(min(FOLDS, len(nets)))]
    sums, measured = np.empty(len(nets)), ms[nets]
    for fold in folds:
        rows = system.solve(ms, np.setdiff1d(everything, nets[fold]))
        sums[fold] = system.counts[nets[fold]] @ rows
    errors = {fit: _held_out(fit, folds, sums, sizes, measured) for fit in FITS}
    best = min(FITS, key=lambda fit: float(np.abs(errors[fit]).mean()))
    chosen = best if np.abs(errors[best]).mean() < EARNS * np.abs(errors[_scale]).mean() else _scale
    fitted = chosen(sums, sizes, measured)
    return banded(errors[chosen], offset=fitted.offset, scale=fitted.scale, per_million=fitted.per_million)


def banded(errors: Floats, *, offset: float, scale: float, per_million: float) -> Calibration:
    """The calibration with the band of a new network; `errors` are held out, predicted over measured less 1."""
    over = 1 / (1 + errors)  # measured over predicted
    half = t.ppf(0.5 + COVERAGE / 2, len(errors) - 1) * over.std(ddof=1) * np.sqrt(1 + 1 / len(errors))
    return Calibration(
        offset=offset,
        scale=scale,
        low=float(min(over.mean() - half, 1.0)),
        high=float(max(over.mean() + half, 1.0)),
        heldout_mape=float(np.abs(errors).mean()),
        heldout_within_5pct=float((np.abs(errors) <= 0.05).mean()),
        nets=len(errors),
        per_million=per_million,
    )


def _held_out(
    fit: Callable[[Floats, Floats, Floats], _Fit],
    folds: list[NDArray[np.intp]],
    sums: Floats,
    sizes: Floats,
    ms: Floats,
) -> Floats:
    """Predicted over measured, less 1, of each network by a fit without its fold."""
    errors = np.empty(len(ms))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(ms)), fold)
        errors[fold] = fit(sums[rest], sizes[rest], ms[rest]).predict(sums[fold], sizes[fold]) / ms[fold] - 1
    return errors
