"""`nas measure`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Resume, Seed, show

__all__ = ["measure"]


def measure(
    space: Annotated[str, typer.Option("--space", help="The space whose rows to measure.")],
    target: Annotated[
        str, typer.Option("--target", help="Device, runtime, dtype, batch, threads.")
    ] = "cpu-ort-fp32-b1-t1",
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of the data the networks are for.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=4, help="Times that every network is visited at least.")] = 8,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="For all of it: fewer rounds, and the rest where it pays most.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; unless told, the one that --target looks in.")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure all rows anew, over the table that is there.")
    ] = False,
    json: Json = False,
) -> None:
    """Build the latency table of a space on this machine."""
    from nas.measure import measure_table
    from nas.tables import tables_dir
    from nas.target import Target
    from nas.train.supernet import space_named

    started = time.monotonic()
    wanted = Target.parse(target)
    networks = space_named(space, classes)
    folder = out or tables_dir()
    table = measure_table(
        networks, wanted, folder, rounds=rounds, minutes=minutes, seed=seed, resume=resume, fresh=fresh
    )
    found = {
        "table": f"{table.path}.json",
        "rows": len(table.rows),
        "seconds": time.monotonic() - started,
        "quality": table.verdict,
    }
    show(found, json)
