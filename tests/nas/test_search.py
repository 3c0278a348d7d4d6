"""The search engine: budgets, feasibility, tightening, and identical results after a kill."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nas.errors import BudgetError
from nas.files import read_json
from nas.runs import Run
from nas.search.engine import NEAR, Plan, Search, run_search, tightened
from nas.search.feasible import cheapest
from search_spaces import SPACES, Arch, InputError

SPACE = SPACES["hybrid_digits"]()


@dataclass(frozen=True)
class Price:
    ms: float
    high: float


def macs(arch: Arch) -> float:
    return sum(spec.macs(state) for spec, state in arch.steps()) / 1e7


class Prices:
    """A tenth of the million MACs, with a band of 2%."""

    def predict(self, arch: Arch) -> Price:
        return Price(macs(arch), 1.02 * macs(arch))


def score(arch: Arch, images: int | None = None) -> float:
    """Saturates in MACs, and prefers depth: a searcher has something to find."""
    return 1 - 1 / (1 + macs(arch)) + 0.01 * len(arch.blocks)


def honest(archs: Sequence[Arch]) -> list[float]:
    return [macs(arch) for arch in archs]


def search(out: Path, plan: Plan, measure: Any = honest, *, resume: bool = False) -> dict[str, Any]:
    return run_search(SPACE, Prices(), score, measure, plan, out, {"supernet": None}, resume=resume)


def test_winners_hold_their_budgets_and_grow_with_them(tmp_path: Path) -> None:
    summary = search(tmp_path / "s", Plan((0.5, 1.0, 1.5), trials=60))
    assert summary["evaluations"] == 60
    accuracies = [result["search_acc"] for result in summary["results"]]
    assert accuracies == sorted(accuracies)
    for result, budget in zip(summary["results"], (0.5, 1.0, 1.5), strict=True):
        assert result["budget_ms"] == budget
        assert result["measured_ms"] <= budget
        arch = Arch.from_json((tmp_path / "s" / result["arch"]).read_text())
        assert result["predicted_ms"] == pytest.approx(macs(arch))
        figures = {name: result[name] for name in ("budget_ms", "predicted_ms", "measured_ms")}
        assert result["targets"] == [{"target": None, **figures}]


def test_the_peak_memory_of_the_winners_is_asked_for_once_all_is_done(tmp_path: Path) -> None:
    def memory(archs: Sequence[Arch]) -> list[float]:
        return [10 * macs(arch) for arch in archs]

    plan = Plan((0.5, 1.0), trials=20)
    summary = run_search(SPACE, Prices(), score, honest, plan, tmp_path / "s", {}, memory=memory)
    for result in summary["results"]:
        assert result["peak_mb"] == pytest.approx(10 * result["measured_ms"])
    assert [result["peak_mb"] for result in search(tmp_path / "t", plan)["results"]] == [None, None]


def test_no_network_is_evaluated_twice_nor_over_the_largest_budget(tmp_path: Path) -> None:
    looked: list[str] = []

    def counting(arch: Arch, images: int | None = None) -> float:
        assert macs(arch) <= 1.0
        if images is None:
            looked.append(arch.id)
        return score(arch)

    run_search(SPACE, Prices(), counting, honest, Plan((1.0,), trials=50), tmp_path / "s", {})
    assert len(looked) == len(set(looked)) == 50


def test_over_budget_is_tightened_and_solved_again(tmp_path: Path) -> None:
    """The device is twice as slow as predicted; the winner must hold the budget on the device."""
    calls: list[str] = []

    def slow(archs: Sequence[Arch]) -> list[float]:
        calls.extend(arch.id for arch in archs)
        return [2 * macs(arch) for arch in archs]

    summary = search(tmp_path / "s", Plan((1.0,), trials=60), slow)
    assert len(calls) > 1
    assert summary["results"][0]["measured_ms"] <= 1.0


def test_a_budget_that_cannot_be_held_ends_with_the_cheapest_figure(tmp_path: Path) -> None:
    def broken(archs: Sequence[Arch]) -> list[float]:
        return [100.0 for _ in archs]

    with pytest.raises(
        BudgetError, match=r"holds 1 ms when measured; the cheapest of hybrid_digits is predicted at 0\.\d+ ms"
    ):
        search(tmp_path / "s", Plan((1.0,), trials=30), broken)


def test_an_infeasible_budget_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    least = 1.02 * macs(SPACE.smallest)
    with pytest.raises(BudgetError, match=f"cheapest network takes {least:.4g} ms"):
        search(tmp_path / "s", Plan((0.9 * least,), trials=10))
    assert not (tmp_path / "s").exists()


def test_cheapest_finds_a_minimum_that_is_not_the_smallest() -> None:
    """On a device where MB3D is free, the cheapest network is not the one with the least of everything."""

    def ms(arch: Arch) -> float:
        return sum(spec.macs(state) for spec, state in arch.steps() if spec.kind != "mb3d")

    assert any(spec.kind == "mb3d" for spec in cheapest(SPACE, ms).blocks)


@pytest.mark.parametrize("budgets", [(), (0.0,), (-1.0,), (float("nan"),), (float("inf"),)])
def test_bad_budgets(budgets: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="budgets must be positive"):
        Plan(budgets, trials=1)


def test_a_searcher_that_does_not_exist_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="no searcher called 'magic'; known: nsga2"):
        Plan((1.0,), trials=1, searcher="magic")


def test_tightening_goes_down_even_when_the_measurement_was_barely_over() -> None:
    assert tightened(1.0, 0.99, 1.0, 1.0001) < 0.99
    assert tightened(1.0, 0.99, 1.0, 1.2) < 0.83


SCRIPT = """
    import sys, time
    from pathlib import Path
    import tests.nas.test_search as t
    def slowly(arch, images=None):
        time.sleep(0.02)
        return t.score(arch)
    t.run_search(t.SPACE, t.Prices(), slowly, t.honest, t.Plan((0.5, 1.0), trials=40), Path(sys.argv[1]), {}, resume=True)
"""


def test_kill_nine_and_resume_gives_the_results_of_an_uninterrupted_search(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=100)
    killed = tmp_path / "killed"
    for records in (5, 25):
        process = subprocess.Popen([*command, str(killed)])
        while not (killed / "records.jsonl").exists() or (killed / "records.jsonl").read_bytes().count(b"\n") < records:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed)], check=True, timeout=100)
    whole, resumed = read_json(tmp_path / "whole" / "summary.json"), read_json(killed / "summary.json")
    assert resumed["results"] == whole["results"]
    assert (killed / "records.jsonl").read_text() == (tmp_path / "whole" / "records.jsonl").read_text()


def test_a_finished_search_answers_lower_limits_from_its_records(tmp_path: Path) -> None:
    """That is how a winner whose exported file is over budget gets replaced, without searching again."""
    plan = Plan((1.0,), trials=30)
    search(tmp_path / "s", plan)

    def finals_only(arch: Arch, images: int | None = None) -> float:
        assert images is not None, "evaluated again"
        return score(arch)

    again = Search(SPACE, Prices(), finals_only, honest, plan, Run.open(tmp_path / "s", "search"))
    assert again.winner((1.0,), (0.8,)).candidate.high <= 0.8


def test_a_tight_budget_is_held_by_the_cheapest_network(tmp_path: Path) -> None:
    """Hardly any proposal is as cheap, but the verdict said that the budget can be met."""
    least = 1.02 * macs(SPACE.smallest)
    summary = search(tmp_path / "s", Plan((1.001 * least,), trials=3))
    assert summary["results"][0]["measured_ms"] <= 1.001 * least


def test_trials_are_spent_near_the_budgets(tmp_path: Path) -> None:
    search(tmp_path / "s", Plan((0.4, 0.9), trials=40))
    records = [record for record in Run.open(tmp_path / "s").records() if record["event"] == "evaluated"]
    near = [NEAR * budget <= record["high"] <= budget for record in records for budget in (0.4, 0.9)]
    assert sum(near) > 0.8 * len(records)


def test_a_budget_above_every_network_is_searched_near_the_largest(tmp_path: Path) -> None:
    summary = search(tmp_path / "s", Plan((50.0,), trials=20))
    assert summary["evaluations"] == 20
    assert summary["results"][0]["predicted_ms"] > 0.8 * macs(SPACE.largest)


def test_codes_of_another_version_of_the_space_are_refused(tmp_path: Path) -> None:
    plan = Plan((1.0,), trials=3)
    search(tmp_path / "s", plan)
    records = tmp_path / "s" / "records.jsonl"
    records.write_text(records.read_text().replace('"arch": "', '"arch": "0', 1))
    with pytest.raises(InputError, match="another version of hybrid_digits"):
        Search(SPACE, Prices(), score, honest, plan, Run.open(tmp_path / "s", "search"))
