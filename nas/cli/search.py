"""`nas search`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Foreign, Json, Out, Resume, Seed, TablePaths, TargetNames, budgets, show

__all__ = ["search"]

BUDGETS = "Milliseconds: A[,B...]; with several targets given once for all, or once each, and winners hold theirs on every one."


def search(
    supernet: Annotated[Path, typer.Option("--supernet", help="Run folder that `nas train` wrote.")],
    budget_ms: Annotated[list[str], typer.Option("--budget-ms", help=BUDGETS)],
    table: TablePaths = None,
    target: TargetNames = None,
    searcher: Annotated[str, typer.Option("--searcher", help="nsga2.")] = "nsga2",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Networks to evaluate.")] = 60,
    out: Out = Path("results/search"),
    seed: Seed = 0,
    resume: Resume = False,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Find the most accurate networks of a supernet that hold latency budgets, and measure that they do."""
    from nas.launch.search import search_supernet
    from nas.search.engine import Plan

    each = [budgets(text) for text in budget_ms]
    plan = Plan(each[0], trials, searcher, seed)
    found = search_supernet(
        supernet, table or (), target or (), plan, out, budgets=each, foreign=foreign_table, resume=resume
    )
    show(found, json)
