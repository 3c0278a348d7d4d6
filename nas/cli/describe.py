"""`nas describe`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, Json, NetworkName, TablePath, TargetName, fractions, show

__all__ = ["describe"]


def describe(
    arch: NetworkName,
    table: TablePath = None,
    target: TargetName = None,
    budget_ms: BudgetMs = None,
    shares: Annotated[
        str | None,
        typer.Option("--shares", help="Of a cascade, which share of the images leaves at each exit: 0.5,0.3,0.2."),
    ] = None,
    json: Json = False,
) -> None:
    """Parameters, MACs by three counts, and predicted latency, block by block; of a cascade as far as each exit too."""
    from nas.cascade.costs import check_shares
    from nas.describe import describe as run
    from nas.networks import network_named
    from nas.tables import find_table, space_of

    leaving = None if shares is None else fractions("--shares", shares)
    network = network_named(arch, budget_ms, cascades=True).arch
    if leaving is not None:
        check_shares(leaving, network)
    priced = table is not None or target is not None
    prices = find_table(table, target, lambda: space_of(network)) if priced else None
    show(run(network, prices, leaving), json)
