"""`nas search`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Foreign, Json, Out, Resume, Seed, TablePath, TargetName, budgets, show

__all__ = ["search"]


def search(
    supernet: Annotated[Path, typer.Option("--supernet", help="Run folder that `nas train` wrote.")],
    budget_ms: Annotated[str, typer.Option("--budget-ms", help="Milliseconds: A[,B...].")],
    table: TablePath = None,
    target: TargetName = None,
    searcher: Annotated[str, typer.Option("--searcher", help="nsga2.")] = "nsga2",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Networks to evaluate.")] = 60,
    out: Out = Path("results/search"),
    seed: Seed = 0,
    resume: Resume = False,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Find the most accurate networks of a supernet that hold latency budgets, and measure that they do."""
    from nas.launch import search_supernet
    from nas.search.engine import Plan

    plan = Plan(budgets(budget_ms), trials, searcher, seed)
    show(search_supernet(supernet, table, target, plan, out, foreign=foreign_table, resume=resume), json)
