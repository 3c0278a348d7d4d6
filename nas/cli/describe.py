"""`nas describe`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, Json, TablePath, show

__all__ = ["describe"]


def describe(
    arch: Annotated[str, typer.Argument(help="Zoo name, architecture file (JSON), retrain or search run.")],
    table: TablePath = None,
    budget_ms: BudgetMs = None,
    json: Json = False,
) -> None:
    """Parameters, MACs by three counts, and predicted latency, block by block."""
    from nas.describe import describe as run
    from nas.latency import LatencyTable
    from nas.networks import network_named

    network = network_named(arch, budget_ms).arch
    show(run(network, None if table is None else LatencyTable.load(table)), json)
