"""Which networks' times the predictions rest on."""

import numpy as np
import pytest

from nas.effort import leverage
from nas.solve import RowSystem
from search_spaces import SPACES

SPACE = SPACES["vit_digits"](classes=10)
PROBES = SPACE.probes()
WANTED = tuple(SPACE.sample(np.random.default_rng(i)) for i in range(20))


def test_leverage_is_how_far_predictions_move_with_a_networks_time() -> None:
    found = leverage(PROBES, WANTED)
    system = RowSystem.of(PROBES, {})
    at = {row: i for i, row in enumerate(system.rows)}
    ms = system.counts @ (0.005 + system.macs / 40e6)

    def predict(ms: np.ndarray) -> np.ndarray:
        times = system.solve(ms, ridge=0.03)
        return np.array([sum(times[at[row]] for row in arch.rows) for arch in WANTED])

    before, moved = predict(ms), []
    for i in range(0, len(PROBES), 5):
        slower = ms.copy()
        slower[i] *= 1.001
        moved.append(1000 * np.sqrt(np.mean((predict(slower) / before - 1) ** 2)))
    expected = np.array([found[PROBES[i].id] for i in range(0, len(PROBES), 5)])
    assert np.corrcoef(moved, expected)[0, 1] > 0.8
    assert np.mean(moved) == pytest.approx(np.mean(expected), rel=0.5)


def test_what_no_prediction_has_in_common_with_matters_least() -> None:
    narrow = [arch for arch in WANTED if arch.image_size == WANTED[0].image_size]
    found = leverage(PROBES, narrow)
    same = [found[probe.id] for probe in PROBES if probe.image_size == narrow[0].image_size]
    other = [found[probe.id] for probe in PROBES if probe.image_size != narrow[0].image_size]
    assert np.mean(same) > 2 * np.mean(other)
