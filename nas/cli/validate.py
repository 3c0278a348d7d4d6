"""`nas validate`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Foreign, Json, show

__all__ = ["validate"]


def validate(
    table: Annotated[Path, typer.Argument(help="Latency table (.csv or .json), or a name that `nas tables` lists.")],
    nets: Annotated[int, typer.Option("--nets", min=2, help="Networks to measure.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which networks are drawn.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=4, help="Times that every network is visited at least.")] = 20,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Measure random whole networks of a table's space against its predictions."""
    from nas.latency import LatencyTable
    from nas.tables import table_path
    from nas.validate import validate as run

    show(run(LatencyTable.load(table_path(table)), nets, seed, foreign=foreign_table, rounds=rounds), json)
