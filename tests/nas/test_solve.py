import numpy as np
import pytest
from scipy.stats import t

from nas.calibration import calibrate
from nas.correction import Moved
from nas.cost import macs
from nas.solve import RowSystem
from search_spaces.arch import Arch
from tests.nas.toy import toy_space

SPACE = toy_space()


def additive(seed: int = 0) -> dict[str, float]:
    """A true time for every row."""
    rng = np.random.default_rng(seed)
    return {row.key: float(rng.uniform(0.01, 0.2)) for row in SPACE.rows}


def total(arch: Arch, truth: dict[str, float]) -> float:
    return sum(truth[row.key] for row in arch.rows)


def nets(count: int, seed: int) -> tuple[Arch, ...]:
    rng = np.random.default_rng(seed)
    return tuple(dict.fromkeys(SPACE.sample(rng) for _ in range(count)))


def test_additive_times_are_predicted_exactly_on_networks_that_were_not_timed() -> None:
    truth, probes = additive(), SPACE.probes()
    system = RowSystem.of(probes, {})
    times = system.solve(np.array([total(arch, truth) for arch in probes]))
    solved = {row.key: time for row, time in zip(system.rows, times, strict=True)}
    unseen = [arch for arch in nets(60, seed=5) if arch not in probes]
    assert len(unseen) > 40
    for arch in unseen:
        assert total(arch, solved) == pytest.approx(total(arch, truth), rel=1e-6)
    assert min(times) >= 0


def test_a_line_that_falls_is_no_calibration() -> None:
    """As noise may give where the networks hardly differ: more work never takes less time."""
    system, truth, ms = measured(1.0, 0.0)
    assert calibrate(system, truth, 3 * ms.max() - ms).scale > 0


def test_rows_that_always_come_together_are_told_apart_by_their_work() -> None:
    truth, probes = additive(), SPACE.probes()
    system = RowSystem.of(probes, {})
    times = system.solve(np.array([total(arch, truth) for arch in probes]))
    assert np.isfinite(times).all() and (times > 0).mean() > 0.9, "the prior leaves no row without a share"


def test_the_work_of_rows_is_what_their_blocks_tell() -> None:
    probes = SPACE.probes()
    system = RowSystem.of(probes, {})
    assert system.price(system.macs).tolist() == [macs(arch) for arch in probes]


def test_known_rows_stay_and_the_missing_ones_are_found_beside_them() -> None:
    truth, probes = additive(), SPACE.probes()
    known = {key: ms for key, ms in truth.items() if not key.startswith("head")}
    some = [probe for probe in probes if len(probe.blocks) < 8]
    system = RowSystem.of(some, known)
    times = system.solve(np.array([total(arch, truth) for arch in some]))
    for row, time in zip(system.rows, times, strict=True):
        assert time == pytest.approx(truth[row.key], rel=1e-6)


def measured(bias: float, noise: float, seed: int = 0) -> tuple[RowSystem, dict[str, float], np.ndarray]:
    """Whole networks that take `bias` times the sum of their rows, with noise; the rows of exact times."""
    truth, whole = additive(), nets(16, seed=2)
    rng = np.random.default_rng(seed)
    ms = np.array([total(arch, truth) * bias * (1 + rng.normal(0, noise)) for arch in whole])
    return RowSystem.of(whole, {}), truth, ms


def test_exact_times_need_no_calibration_and_leave_no_band() -> None:
    found = calibrate(*measured(1.0, 0.0))
    assert found.offset == pytest.approx(0.0, abs=1e-6) and found.scale == pytest.approx(1.0, abs=1e-6)
    assert (found.kind, found.factor) == ("", 1.0)
    assert found.heldout_mape < 1e-6 and found.low == pytest.approx(1.0) == found.high and found.nets == 16


def test_the_band_holds_nine_of_ten_new_networks() -> None:
    truth, rng = additive(), np.random.default_rng(1)
    inside = []
    for seed in range(30):
        found = calibrate(*measured(1.0, 0.02, seed))
        for arch in nets(10, seed=100 + seed):
            ms = total(arch, truth)
            ratio = ms * (1 + rng.normal(0, 0.02)) / (found.scale * ms + found.offset)
            inside.append(found.low <= ratio <= found.high)
    assert 0.85 <= np.mean(inside) <= 0.97


def test_times_that_moved_during_the_measurement_widen_the_band() -> None:
    found = calibrate(*measured(1.0, 0.0), moved=Moved(0.05, together=0.03))
    half = t.ppf(0.95, 15) * np.sqrt(0.25 * 0.04**2 + 0.75 * 0.03**2)
    assert found.high - 1 == pytest.approx(1 - found.low) == pytest.approx(half)
    assert found.moved == 0.05


def test_the_band_holds_nine_of_ten_in_a_process_that_lays_networks_out_anew() -> None:
    """Each process has a time of its own for every network, and one for all: the errors know of the first, the scale of the other."""
    truth, whole, rng = additive(), nets(36, seed=3), np.random.default_rng(1)
    plain, inside = np.array([total(arch, truth) for arch in whole]), []
    for _ in range(200):
        first, second, other = (plain * (1 + rng.normal(0, 0.01) + rng.normal(0, 0.03, len(whole))) for _ in range(3))
        went = 2 * (second - first) / (second + first)
        moved = Moved(float(np.sqrt(np.square(went).mean())), float(abs(went.mean())))
        found = calibrate(RowSystem.of(whole, {}), truth, (first + second) / 2, moved)
        ratio = other / (found.offset + found.scale * plain)
        inside.append(np.mean((found.low <= ratio) & (ratio <= found.high)))
    assert 0.87 <= np.mean(inside) <= 0.93


def test_whole_networks_that_are_slower_than_their_rows_move_the_predictions() -> None:
    found = calibrate(*measured(1.06, 0.0))
    assert found.offset == pytest.approx(0.0, abs=1e-6) and found.scale == pytest.approx(1.06, abs=1e-6)
    assert found.heldout_mape < 1e-6


def test_a_kind_of_rows_that_takes_more_in_whole_networks_is_found_where_the_residuals_show_it() -> None:
    system, truth, ms = measured(1.0, 0.001)
    ffn = np.array([truth[row.key] if row.op == "mb3d.ffn" else 0 for row in system.rows])
    found, without = calibrate(system, truth, ms + 0.4 * system.counts @ ffn), calibrate(system, truth, ms)
    assert (found.kind, without.kind) == ("mb3d.ffn", "") and 1.2 < found.factor < 1.5
