"""Where a measurement's effort pays: how far each network's time moves the predictions that the table is for."""

from collections.abc import Sequence

import numpy as np

from nas.solve import RowSystem
from search_spaces.arch import Arch

__all__ = ["leverage"]

ROW_MS, MACS_A_MS = 0.005, 40e6  # of a row before anything is measured; only their ratios matter
RIDGE = 0.03  # relative uncertainty of a network's time, as a share of that of a row before it is measured


def leverage(archs: Sequence[Arch], wanted: Sequence[Arch]) -> dict[str, float]:
    """How far the predictions of `wanted` move when the time of one of `archs` does, by its id.

    The root mean square, over the networks that are to be predicted, of the relative change of a prediction over that of the
    time. Rows are the least squares of the networks' times, as in `nas.solve`, so it follows from what the networks have in
    common, whatever the times will be. Those that many predictions rest on have much of it.
    """
    system, rows = RowSystem.of(archs, {}), {row for arch in archs for row in arch.rows}
    ms = ROW_MS + system.macs / MACS_A_MS
    at = {row: i for i, row in enumerate(system.rows)}
    counts = np.zeros((len(wanted), len(system.rows)))
    for i, arch in enumerate(wanted):
        for row in arch.rows:
            if row in rows:
                counts[i, at[row]] += 1
    shares, predicted = system.counts * ms, counts * ms  # in units of each row's time before it is measured
    shares /= shares.sum(1, keepdims=True)
    predicted /= predicted.sum(1, keepdims=True)
    normal = shares.T @ shares + RIDGE**2 * np.eye(len(ms))
    moved = predicted @ np.linalg.solve(normal, shares.T)  # (wanted, archs)
    return dict(zip((arch.id for arch in archs), np.sqrt((moved**2).mean(0)), strict=True))
