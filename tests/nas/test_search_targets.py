"""A search for several targets at once: winners hold the budgets of each, predicted and measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.errors import BudgetError
from nas.launch.search import search_supernet
from nas.runs import Run
from nas.search.engine import Plan, Search, run_search
from nas.search.feasible import cheapest
from nas.search.places import Place, budgets_each, told
from nas.tables import find_tables
from nas.target import Target
from search_spaces import Arch, InputError
from search_spaces.blocks import MB3D
from tests.nas.test_search import SPACE, Price, Prices, honest, macs, score


def tokens_ms(arch: Arch) -> float:
    """A target on which attention is dear."""
    return macs(arch) / 4 + 0.2 * sum(isinstance(spec, MB3D) for spec in arch.blocks)


def place(ms: Callable[[Arch], float], budgets: tuple[float, ...], slower: float = 1.0, name: str = "phone") -> Place:
    """A target whose times are `ms`, with a band of 2%; measured they are `slower` times that."""
    prices: Any = SimpleNamespace(predict=lambda arch: Price(ms(arch), 1.02 * ms(arch)))
    return Place(name, prices, lambda archs: [slower * ms(arch) for arch in archs], budgets)


def search(out: Path, plan: Plan, beside: Sequence[Place], **how: Any) -> dict[str, Any]:
    return run_search(SPACE, Prices(), score, honest, plan, out, {}, target="server", beside=beside, **how)


PLAN = Plan((0.6, 1.2), trials=8)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few proposals are passed over, so that a search takes a second."""
    monkeypatch.setattr("nas.search.engine.PATIENCE", 1)


def test_winners_hold_the_budgets_of_every_target(tmp_path: Path) -> None:
    alone = run_search(SPACE, Prices(), score, honest, PLAN, tmp_path / "alone", {})["results"]
    files = [Arch.from_json((tmp_path / "alone" / one["arch"]).read_text()) for one in alone]
    limits = tuple(0.7 * tokens_ms(arch) for arch in files)
    found = search(tmp_path / "both", PLAN, [place(tokens_ms, limits)])
    assert found["evaluations"] == 8
    for row, (result, limit) in enumerate(zip(found["results"], limits, strict=True)):
        arch = Arch.from_json((tmp_path / "both" / result["arch"]).read_text())
        server, phone = result["targets"]
        assert (server["target"], phone["target"]) == ("server", "phone")
        assert server["budget_ms"] == result["budget_ms"] == PLAN.budgets[row] and phone["budget_ms"] == limit
        assert server["measured_ms"] == result["measured_ms"] == macs(arch) <= PLAN.budgets[row]
        assert phone["predicted_ms"] == phone["measured_ms"] == tokens_ms(arch) <= limit < tokens_ms(files[row])
    assert Run.open(tmp_path / "both").config["beside"] == [["phone", list(limits)]]


def test_only_the_limit_that_was_exceeded_is_tightened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second target is a third slower than its table says."""
    plan = Plan((1.0,), trials=8)
    (result,) = search(tmp_path / "s", plan, [place(macs, (1.1,), slower=1.4)])["results"]
    assert result["targets"][1]["measured_ms"] <= 1.1 and result["predicted_ms"] <= 1.1 / 1.4
    said = capsys.readouterr().err
    assert "over 1 ms on server and 1.1 ms on phone; limit tightened to 1 ms on server and" in said
    with pytest.raises(
        BudgetError, match=r"holds 1 ms on server and 1.1 ms on phone when measured; .* ms on phone: raise"
    ):
        search(tmp_path / "t", plan, [place(macs, (1.1,), slower=100.0)])


def test_budgets_that_each_target_meets_alone_but_not_both_are_refused(tmp_path: Path) -> None:
    def backwards(arch: Arch) -> float:
        return 1 / macs(arch)

    least, most = macs(cheapest(SPACE, macs)), macs(SPACE.largest)
    beside = place(backwards, (1.2 / most,))
    message = rf"budgets of {1.2 * least:.4g} ms on server and {1.2 / most:.4g} ms on phone together cannot be met"
    with pytest.raises(BudgetError, match=f"{message}.*cheapest network takes .* ms on server and .* ms on phone"):
        search(tmp_path / "s", Plan((1.2 * least,), trials=1), [beside])
    assert not (tmp_path / "s").exists()
    (result,) = search(tmp_path / "t", Plan((2 * most,), trials=1), [beside])["results"]
    assert result["targets"][1]["measured_ms"] <= 1.2 / most, "the cheapest for both is evaluated in any case"


def test_what_was_recorded_is_not_done_again(tmp_path: Path) -> None:
    beside = [place(tokens_ms, (0.8, 1.6))]
    whole = search(tmp_path / "s", PLAN, beside)
    (tmp_path / "s" / "summary.json").unlink()

    def never(*given: Any, **how: Any) -> Any:
        pytest.fail("done again")

    used = [Place("phone", beside[0].prices, never, beside[0].budgets)]
    again = run_search(
        SPACE, Prices(), never, never, PLAN, tmp_path / "s", {}, target="server", beside=used, resume=True
    )
    assert again["results"] == whole["results"]
    run = Run.open(tmp_path / "s", "search")
    read = Search(SPACE, Prices(), never, never, PLAN, run, beside=used)
    assert all(len(one.times) == len(one.highs) == 2 for one in read.evaluated.values())
    with pytest.raises(InputError, match="holds a run with beside"):
        search(tmp_path / "s", PLAN, [place(tokens_ms, (0.8, 1.7))], resume=True)


def test_budgets_are_given_once_for_all_or_once_each() -> None:
    assert budgets_each([(1.0, 2.0)], 3) == [(1.0, 2.0)] * 3
    assert budgets_each([(1.0,), (2.0,)], 2) == [(1.0,), (2.0,)]
    with pytest.raises(InputError, match="given 2 times for 1 target; give it once for all, or once each"):
        budgets_each([(1.0,), (2.0,)], 1)
    with pytest.raises(InputError, match="told apart by their budgets on the first target"):
        budgets_each([(1.0, 1.0), (2.0, 3.0)], 2)
    with pytest.raises(InputError, match="takes as many budgets, one for each winner; got 2 and 1"):
        budgets_each([(1.0, 2.0), (3.0,)], 2)
    assert told((1.0,), [place(macs, (1.0,))]) == "1 ms"


def test_a_target_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: SimpleNamespace(target=Target.parse(name)) for name in ("cpu-ort-fp32-b1-t1",)}
    monkeypatch.setattr("nas.tables.LatencyTable.load", lambda path: tables[path.name])
    monkeypatch.setattr("nas.tables.measure_table", lambda space, target, folder, resume: target.name)
    one = [Path("cpu-ort-fp32-b1-t1")]
    space: Any = lambda: SPACE  # noqa: E731
    assert find_tables(one, ["cpu-ort-fp32-b2-t1"], space) == [*tables.values(), "cpu-ort-fp32-b2-t1"]
    monkeypatch.setattr("nas.tables.measure_table", lambda *how, **more: pytest.fail("measured"))
    with pytest.raises(InputError, match="cpu-ort-fp32-b1-t1 is given twice, by --table or --target"):
        find_tables(one, ["cpu-ort-fp32-b1-t1"], space)
    with pytest.raises(InputError, match="give either --table FILE or --target NAME"):
        find_tables([], [], space)
    with pytest.raises(InputError, match="--budget-ms is given 2 times for 1 target"):
        search_supernet(Path("none"), one, [], Plan((1.0,), 1), Path("out"), budgets=[(1.0,), (2.0,)])
