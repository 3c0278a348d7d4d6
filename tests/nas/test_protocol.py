"""The timing protocol against machines whose true times are known."""

import gc
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nas.correction import STATISTICS, settle
from nas.interleave import quiet, time_interleaved
from nas.visits import PROTOCOL, REFERENCE, Protocol, Visit

HURRIED = replace(PROTOCOL, patience_s=0.0)


class Machine:
    """A clock that only runs while something is timed; `slow(t, sensitivity)` multiplies times at `t` milliseconds."""

    def __init__(self, slow: Callable[[float, float], float], noise: float = 0.004) -> None:
        self.now, self.slow, self.noise = 0.0, slow, noise
        self.rng = np.random.default_rng(0)


class Fake:
    """A network of a true time; `sensitivity` is how much of a neighbour's slowdown it feels."""

    def __init__(self, machine: Machine, ms: float, sensitivity: float = 1.0) -> None:
        self.machine, self.ms, self.sensitivity = machine, ms, sensitivity
        self.opened = self.cold = 0

    def reopen(self) -> None:
        self.opened += 1
        self.cold = 2

    def close(self) -> None:
        self.cold = 2

    def time(self, repeats: int) -> list[float]:
        runs = []
        for _ in range(repeats):
            machine = self.machine
            ms = self.ms * machine.slow(machine.now, self.sensitivity) * (1 + abs(machine.rng.normal(0, machine.noise)))
            ms *= 1.5 if self.cold > 0 else 1.0
            ms *= 8 if machine.rng.random() < 0.01 else 1.0  # an interrupt
            self.cold -= 1
            machine.now += ms
            runs.append(ms)
        return runs


def fleet(machine: Machine, count: int = 12) -> dict[str, Fake]:
    sensitivity = np.linspace(0.6, 1.4, count)
    return {f"n{i:02d}": Fake(machine, 0.3 + 0.15 * i, sensitivity[(5 * i) % count]) for i in range(count)}


def recovered(machine: Machine, rounds: int = 20, protocol: Protocol = HURRIED) -> tuple[np.ndarray, list[Visit]]:
    """Times over true times, and the visits."""
    networks = fleet(machine)
    visits = time_interleaved(networks, Fake(machine, 0.5), rounds=rounds, seed=1, protocol=protocol)
    times = settle(visits, rounds, protocol)
    return np.array([times.ms[name] / fake.ms for name, fake in networks.items()]), visits


def test_a_steady_machine_gives_the_true_times() -> None:
    ratios, visits = recovered(Machine(lambda t, s: 1.0))
    assert ratios == pytest.approx(1.0, abs=0.01)
    assert max(visit.round for visit in visits) == 19, "nothing was disturbed, so no round is added"


def test_cold_runs_after_opening_are_not_recorded() -> None:
    _, visits = recovered(Machine(lambda t, s: 1.0, noise=0.0), rounds=5)
    first = [visit.runs[0] / np.median(visit.runs) for visit in visits]
    assert np.mean(np.array(first) > 1.4) < 0.05  # but for interrupts


def test_a_slowly_drifting_clock_is_divided_out() -> None:
    ratios, _ = recovered(Machine(lambda t, s: 1 + t / 60_000))  # some 2.5 s, so about 5%
    assert ratios.std() / ratios.mean() < 0.01


def test_a_clock_with_two_speeds_that_networks_feel_unequally_is_seen_through() -> None:
    rng = np.random.default_rng(3)
    spells = np.cumsum(rng.exponential(150, 4000))  # milliseconds until the neighbour comes or goes

    def slow(t: float, sensitivity: float) -> float:
        return 1 + 0.45 * sensitivity * (int(np.searchsorted(spells, t)) % 2)

    ratios, visits = recovered(Machine(slow))
    assert ratios == pytest.approx(1.0, abs=0.02)
    reference = np.median([np.median(visit.runs) for visit in visits if visit.network == REFERENCE])
    plain = np.array([np.median([np.median(v.runs) for v in visits if v.network == n]) for n in fleet(Machine(slow))])
    true = np.array([fake.ms for fake in fleet(Machine(slow)).values()])
    scaled = plain / true * 0.5 / reference
    assert scaled.std() > 3 * ratios.std(), "the median over the reference's median is no match"


def test_slow_spells_that_are_longer_than_the_clocks_window_are_not_taken_for_the_clock() -> None:
    def slow(t: float, sensitivity: float) -> float:
        return 1 + 0.45 * sensitivity * (t % 2500 > 700)  # 28% of the time undisturbed, in long stretches

    hurried = replace(HURRIED, window=20)
    ratios, visits = recovered(Machine(slow), protocol=hurried)
    assert settle(visits, 20, hurried).disturbed > 0.5
    assert ratios == pytest.approx(1.0, abs=0.02)


def test_a_network_without_undisturbed_visits_gets_by_with_its_least_disturbed_ones() -> None:
    true = {"a": 2.0, "b": 2.5, "c": 3.0, "d": 3.5}
    visits = visits_of({name: [[ms] * 5] * 9 for name, ms in true.items()})
    last = {visit.order for visit in visits if visit.network == "d"}
    slowed = last | {order - 1 for order in last} | {order + 1 for order in last}  # d and the references beside it
    slow = [replace(v, runs=tuple(1.5 * run for run in v.runs)) if v.order in slowed else v for v in visits]
    times = settle(slow, 9, HURRIED)
    assert times.poor == ("a", "c", "d"), "a slow reference comes before a, after c, and on both sides of d"
    assert times.ms == pytest.approx(true)


def test_every_network_is_visited_once_a_round_in_an_order_that_the_seed_decides() -> None:
    def orders(seed: int) -> list[list[str]]:
        visits = time_interleaved(
            fleet(Machine(lambda t, s: 1.0)),
            Fake(Machine(lambda t, s: 1.0), 0.5),
            rounds=4,
            seed=seed,
            protocol=HURRIED,
        )
        return [[v.network for v in visits if v.round == r and v.network != REFERENCE] for r in range(4)]

    first = orders(1)
    assert all(sorted(order) == sorted(first[0]) and len(set(order)) == 12 for order in first)
    assert first[0] != first[1] and first == orders(1) != orders(2)


def test_every_visit_is_of_a_freshly_opened_session_with_references_around_it() -> None:
    machine = Machine(lambda t, s: 1.0)
    networks = fleet(machine)
    visits = time_interleaved(networks, Fake(machine, 0.5), rounds=3, seed=0, protocol=HURRIED)
    assert all(fake.opened == 3 for fake in networks.values())
    names = [visit.network for visit in visits]
    assert names[0] == names[-1] == REFERENCE
    assert all(REFERENCE in names[max(0, i - 2) : i] for i, name in enumerate(names) if name != REFERENCE)
    assert [visit.order for visit in visits] == list(range(len(visits)))


def test_a_visit_lasts_about_as_long_as_the_protocol_says() -> None:
    machine = Machine(lambda t, s: 1.0, noise=0.0)
    networks = {"tiny": Fake(machine, 0.01), "middle": Fake(machine, 0.5), "huge": Fake(machine, 40.0)}
    visits = time_interleaved(networks, Fake(machine, 0.5), rounds=2, seed=0, protocol=HURRIED)
    runs = {visit.network: len(visit.runs) for visit in visits}
    assert (runs["tiny"], runs["middle"], runs["huge"]) == (60, 10, 2)


def test_disturbed_networks_get_more_rounds_but_not_without_end() -> None:
    ratios, visits = recovered(Machine(lambda t, s: 1 + 0.5 * (int(t / 170) % 3 > 0)), rounds=6)
    assert max(visit.round for visit in visits) >= 6
    assert ratios == pytest.approx(1.0, abs=0.03)
    machine = Machine(lambda t, s: 1.0)
    hopeless = time_interleaved(
        fleet(machine), Fake(machine, 0.5), rounds=4, seed=0, protocol=HURRIED, floor=0.25
    )  # the reference never comes near what it took on another day
    assert max(visit.round for visit in hopeless) == 11
    times = settle(hopeless, 4, HURRIED, floor=0.25)
    assert len(times.poor) == 12 and times.disturbed == 1.0 and len(times.ms) == 12


def test_a_resumed_measurement_makes_the_visits_that_are_left() -> None:
    machine = Machine(lambda t, s: 1.0)
    whole = time_interleaved(fleet(machine), Fake(machine, 0.5), rounds=5, seed=7, protocol=HURRIED)
    recorded: list[Visit] = []
    again = time_interleaved(
        fleet(machine), Fake(machine, 0.5), rounds=5, seed=7, protocol=HURRIED, record=recorded.append, done=whole[:31]
    )
    assert again == whole[:31] + recorded and {visit.segment for visit in recorded} == {1}
    made = Counter((visit.round, visit.network) for visit in again if visit.network != REFERENCE)
    assert set(made.values()) == {1} and len(made) == 5 * 12
    order = [v.network for v in whole if v.round == 4 and v.network != REFERENCE]
    assert [v.network for v in again if v.round == 4 and v.network != REFERENCE] == order
    times = settle(again, 5, HURRIED)
    assert [times.ms[name] / fake.ms for name, fake in fleet(machine).items()] == pytest.approx([1.0] * 12, abs=0.02)


def visits_of(runs: dict[str, list[list[float]]]) -> list[Visit]:
    """A round per list; a steady reference before each visit."""
    visits, order = [], 0
    for number in range(len(next(iter(runs.values())))):
        for name in runs:
            visits.append(Visit(0, number, order, REFERENCE, 0.0, (1.0,) * 5))
            visits.append(Visit(0, number, order + 1, name, 0.0, tuple(runs[name][number])))
            order += 2
    return [*visits, Visit(0, 0, order, REFERENCE, 0.0, (1.0,) * 5)]


def test_the_statistic_with_the_least_split_half_noise_is_chosen() -> None:
    low_is_steady = [[2.0, 2.0, 2.0, 3.0 + 0.1 * i, 3.1 + 0.1 * i, 3.3 + 0.1 * i, 3.2 + 0.1 * i] for i in range(6)]
    times = settle(visits_of({"a": low_is_steady}), 6, HURRIED)
    assert times.statistic in {"p05", "p20"} and times.ms["a"] == 2.0 and times.noise_floor == 0.0
    median_is_steady = [[1.0 + 0.1 * i, 1.2 + 0.1 * i, 3.0, 3.0, 3.0, 3.0, 9.0] for i in range(6)]
    times = settle(visits_of({"a": median_is_steady}), 6, HURRIED)
    assert times.statistic == "median" and times.ms["a"] == 3.0
    assert settle(visits_of({"a": median_is_steady}), 6, HURRIED, "p05").statistic == "p05"


def test_noise_is_the_relative_difference_of_the_statistic_between_halves() -> None:
    times = settle(visits_of({"a": [[1.0] * 5, [1.1] * 5] * 3}), 6, HURRIED)
    assert times.noise["a"] == pytest.approx(0.1 / 1.05)
    assert "mean" not in STATISTICS


def test_what_slows_some_networks_and_not_the_reference_shows_between_the_halves() -> None:
    runs = {"steady": [[2.0]] * 8, "moved": [[3.0]] * 4 + [[3.0 * 1.04]] * 4}
    times = settle(visits_of(runs), 8, PROTOCOL, "median")
    assert times.moved.each == pytest.approx(0.04 / 1.02 / np.sqrt(2), rel=1e-6)
    assert times.moved.together == pytest.approx(0.04 / 1.02 / 2, rel=1e-6)
    assert times.noise_floor == pytest.approx(0.0), "every other visit tells nothing of it"


def test_two_processes_are_two_sittings_however_many_visits_each_made() -> None:
    runs = {"up": [[2.0]] * 2 + [[2.0 * 1.04]] * 6, "down": [[3.0 * 1.04]] * 2 + [[3.0]] * 6}
    visits = [replace(visit, segment=int(visit.round >= 2)) for visit in visits_of(runs)[:-1]]
    moved = settle(visits, 8, PROTOCOL, "median").moved
    assert (moved.each, moved.apart) == pytest.approx((0.04 / 1.02,) * 2) and moved.together == pytest.approx(0.0)


def test_timing_is_undisturbed_by_collection_and_stays_on_its_cores_and_puts_both_back() -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), quiet(1):
        assert not gc.isenabled()
        assert cores is None or len(os.sched_getaffinity(0)) == 1
        raise KeyboardInterrupt
    assert gc.isenabled() and (cores is None or os.sched_getaffinity(0) == cores)


def test_visits_go_where_the_interval_is_wide_and_the_weight_is_large() -> None:
    machine = Machine(lambda t, s: 1.0, noise=0.0)

    class Restless(Fake):
        def time(self, repeats: int) -> list[float]:
            level = 1 + abs(self.machine.rng.normal(0, 0.08))  # of the whole visit
            return [level * run for run in super().time(repeats)]

    def visits(weights: dict[str, float] | None) -> Counter[str]:
        networks = {"calm": Fake(machine, 1.0), "restless": Restless(machine, 1.0), "idle": Restless(machine, 1.0)}
        made = time_interleaved(networks, Fake(machine, 0.5), rounds=8, seed=0, protocol=HURRIED, weights=weights)
        return Counter(visit.network for visit in made)

    alike = visits(None)
    assert alike["calm"] == 8 < alike["restless"] <= 24 and alike["idle"] > 8
    weighed = visits({"calm": 1.0, "restless": 1.0, "idle": 0.001})
    assert weighed["calm"] == weighed["idle"] == 8 < weighed["restless"]


def test_when_time_is_short_all_get_the_least_rounds_and_no_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda t, s: 1.0)
    monkeypatch.setattr("nas.interleave.time.monotonic", lambda: machine.now / 1000)

    def last_round(seconds: float) -> int:
        deadline = machine.now / 1000 + seconds
        made = time_interleaved(
            fleet(machine), Fake(machine, 0.5), rounds=30, seed=0, protocol=HURRIED, deadline=deadline
        )
        return max(visit.round for visit in made)

    assert last_round(0.0) == 1
    machine.now = started = 0.0
    assert 2 < last_round(2.0) < 29
    assert (machine.now - started) / 1000 < 2.2
