"""`nas describe`."""

from typing import Annotated

import typer

from nas.cli.options import Json, TablePath, show

__all__ = ["describe"]


def describe(
    arch: Annotated[str, typer.Argument(help="Zoo name, or architecture file (JSON).")],
    table: TablePath = None,
    json: Json = False,
) -> None:
    """Parameters, MACs by three counts, and predicted latency, block by block."""
    from nas.describe import describe as run
    from nas.latency import LatencyTable
    from nas.networks import arch_named

    network = arch_named(arch)
    show(run(network, None if table is None else LatencyTable.load(table)), json)
