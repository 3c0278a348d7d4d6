"""`nas describe`."""

from typing import Annotated

import typer

from nas.cli.options import Json, TablePath, TargetName, show

__all__ = ["describe"]


def describe(
    arch: Annotated[str, typer.Argument(help="Zoo name, or architecture file (JSON).")],
    table: TablePath = None,
    target: TargetName = None,
    json: Json = False,
) -> None:
    """Parameters, MACs by three counts, and predicted latency, block by block."""
    from nas.describe import describe as run
    from nas.networks import arch_named
    from nas.tables import find_table

    network = arch_named(arch)
    found = None if table is None and target is None else find_table(table, target, None)
    show(run(network, found), json)
