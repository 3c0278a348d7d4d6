"""`nas describe`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, Json, TablePath, TargetName, show

__all__ = ["describe"]


def describe(
    arch: Annotated[
        str,
        typer.Argument(
            help="Zoo name, contours_vit, digits_vit, timm:NAME, hf:NAME, checkpoint, architecture file (JSON), retrain or search run."
        ),
    ],
    table: TablePath = None,
    target: TargetName = None,
    budget_ms: BudgetMs = None,
    json: Json = False,
) -> None:
    """Parameters, MACs by three counts, and predicted latency, block by block."""
    from nas.describe import describe as run
    from nas.networks import network_named
    from nas.tables import find_table, space_of

    network = network_named(arch, budget_ms, cascades=True).arch
    priced = table is not None or target is not None
    show(run(network, find_table(table, target, lambda: space_of(network)) if priced else None), json)
