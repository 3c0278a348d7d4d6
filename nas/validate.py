"""Whether a table's predictions hold: random networks of its space, measured whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.elsewhere import time_elsewhere
from nas.latency import LatencyTable, Prediction
from nas.plan import VALIDATION_STREAM, draw
from nas.timing import ROUNDS, Timing, name_of, settled, time_sessions
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.space import Measurable

__all__ = ["accuracy", "validate"]

SITTING = 40  # networks in one process at most, about as many as a table is calibrated on


def validate(
    table: LatencyTable,
    nets: int,
    seed: int,
    foreign: bool = False,
    *,
    rounds: int = ROUNDS,
    space: Measurable | None = None,
) -> dict[str, Any]:
    """Measure networks that the table has not seen, at its clock, against its predictions.

    Args:
        table: what to judge.
        nets: how many networks to draw.
        seed: draws them, from another stream than the calibration's networks.
        foreign: accept a table of another machine.
        rounds: visits that each network gets at least.
        space: whose networks; without it, the table's.

    Returns:
        `within_3pct`, `within_5pct`, `within_10pct`, `within_band` (shares of the networks), `mape`, `bias` (mean of predicted over
        measured, less 1), `kendall_tau`, `noise_floor` (mean split-half noise of the measured), `drift` (this clock
        over the table's), `nets`, and `networks`: a list of `arch`, `predicted_ms`, `low`, `high`, `measured_ms`,
        `error`.

    Raises:
        InputError: fewer than two networks, a table of another machine, or rows that it lacks.
    """
    if nets < 2:
        raise InputError(f"a validation needs at least 2 networks, got {nets}")
    table.check_machine(foreign)
    archs = draw(space or table.open_space(), nets, seed, VALIDATION_STREAM)
    predictions = [table.predict(arch) for arch in archs]
    return _judge(archs, predictions, _timings(table, archs, rounds, seed))


def _timings(table: LatencyTable, archs: Sequence[Arch], rounds: int, seed: int) -> list[Timing]:
    """Each network at the table's clock; many of them in processes of their own, one after the other."""
    table.target.check_here()
    sittings = -(-len(archs) // SITTING)
    timed = time_sessions if sittings == 1 else time_elsewhere
    found: dict[str, Timing] = {}
    for number in range(sittings):
        visits = timed(
            archs[number::sittings],
            table.reference,
            table.target,
            rounds=rounds,
            seed=seed,
            floor=table.reference_ms,
        )
        found |= settled(visits, rounds, table.statistic, table.reference_ms)
    return [found[name_of(arch)] for arch in archs]


def accuracy(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """How near predictions are: `within_3pct`, `within_5pct`, `within_10pct`, `mape`, `bias` and `kendall_tau`."""
    from scipy.stats import kendalltau

    errors = predicted / measured - 1
    shares = {f"within_{limit}pct": float((np.abs(errors) <= limit / 100).mean()) for limit in (3, 5, 10)}
    return {
        **shares,
        "mape": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
    }


def _judge(archs: Sequence[Arch], predictions: Sequence[Prediction], timings: Sequence[Timing]) -> dict[str, Any]:
    predicted = np.array([prediction.ms for prediction in predictions])
    measured = np.array([timing.ms for timing in timings])
    errors = predicted / measured - 1
    networks = [
        {"arch": arch.id, "predicted_ms": p.ms, "low": p.low, "high": p.high, "measured_ms": t.ms, "error": float(e)}
        for arch, p, t, e in zip(archs, predictions, timings, errors, strict=True)
    ]
    return {
        **accuracy(predicted, measured),
        "within_band": float(np.mean([p.low <= t.ms <= p.high for p, t in zip(predictions, timings, strict=True)])),
        "noise_floor": float(np.mean([timing.noise for timing in timings])),
        "drift": float(np.mean([timing.drift for timing in timings])),
        "nets": len(archs),
        "networks": networks,
    }
