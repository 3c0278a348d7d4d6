"""`nas search`, from paths and names to winners."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nas.data import load as load_data
from nas.peak_memory import peak_mb
from nas.runs import Run
from nas.search.engine import Plan, run_search, supernet_config
from nas.search.places import Place, Times, budgets_each
from nas.search.score import Scorer
from nas.tables import find_tables, measured_ms
from nas.train.supernet import load_supernet
from search_spaces.arch import Arch

__all__ = ["search_supernet"]


def search_supernet(
    supernet: Path,
    tables: Sequence[Path],
    targets: Sequence[str],
    plan: Plan,
    out: Path,
    *,
    budgets: Sequence[Times] = (),
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas search`: winners of the budgets, their architecture files relative to `out`.

    Winners hold the budgets on every target: of `tables` and then of `targets`, with the plan's on all of them unless `budgets` has some for
    each. Peak memory is that on the first.

    Raises:
        InputError: no such supernet or table, a table of another machine, a target twice, or budgets for other than each of them.
        BudgetError: a budget cannot be met.
    """
    Run.check_free(out, resume=resume)  # before hours of measuring
    each = budgets_each(budgets or [plan.budgets], max(1, len(tables) + len(targets)))
    model, run = load_supernet(supernet)
    prices = find_tables(tables, targets, lambda: model.space)
    for table in prices:
        table.check_machine(foreign)
    data = load_data(run.config["data"], image_size=model.space.largest.image_size)

    def memory(archs: Sequence[Arch]) -> list[float]:
        return peak_mb(archs, prices[0].target)

    first, *beside = (
        Place(table.target.name, table, partial(measured_ms, table=table, seed=plan.seed), own)
        for table, own in zip(prices, each, strict=True)
    )
    config, score = supernet_config(supernet, out, *prices), Scorer(model, data, plan.seed)
    return run_search(
        model.space,
        first.prices,
        score,
        first.measure,
        plan,
        out,
        config,
        target=first.name,
        beside=beside,
        memory=memory,
        resume=resume,
    )
