"""How the sum of a network's rows becomes a prediction with a band, judged on networks held out of the solve."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

from nas.solve import RowSystem
from nas.table_file import Calibration

__all__ = ["calibrate"]

EARNS = 0.8  # an offset is used only where it lowers the held-out error to this share: its slope rests on few networks

Floats = NDArray[np.float64]


def _scale(sums: Floats, ms: Floats) -> tuple[float, float]:
    return 0.0, float(np.median(ms / sums))


def _affine(sums: Floats, ms: Floats) -> tuple[float, float]:
    slope, offset, *_ = theilslopes(ms, sums)
    return float(offset), float(slope)


def calibrate(system: RowSystem, ms: Floats, nets: NDArray[np.intp], noise: float) -> Calibration:
    """Fit on the networks `nets` of the system, each priced by rows solved without it.

    A scale, the median of measured over summed; or the robust line of Theil and Sen, where it earns its place. Errors
    are held out twice: the network enters neither the rows nor the fit that predict it.

    Args:
        system: all networks.
        ms: their measured times.
        nets: indices of the calibration networks, at least three.
        noise: relative noise of a measurement, by which the band is widened.
    """
    assert len(nets) >= 3
    everything = np.arange(len(ms))
    sums = np.array([system.counts[i] @ system.solve(ms, everything[everything != i]) for i in nets])
    measured = ms[nets]
    errors = {}
    for fit in (_scale, _affine):
        predicted = []
        for i in range(len(nets)):
            offset, scale = fit(np.delete(sums, i), np.delete(measured, i))
            predicted.append(offset + scale * sums[i])
        errors[fit] = np.array(predicted) / measured - 1
    better = np.abs(errors[_affine]).mean() < EARNS * np.abs(errors[_scale]).mean()
    fit = _affine if better else _scale
    offset, scale = fit(sums, measured)
    ends = 1 / (1 + errors[fit])  # the extremes of 16 cover about nine of ten new networks
    return Calibration(
        offset=offset,
        scale=scale,
        low=float(min(ends.min() - noise, 1.0)),
        high=float(max(ends.max() + noise, 1.0)),
        heldout_mape=float(np.abs(errors[fit]).mean()),
        heldout_within_5pct=float((np.abs(errors[fit]) <= 0.05).mean()),
        nets=len(nets),
    )
