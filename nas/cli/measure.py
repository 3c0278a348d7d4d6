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
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=4, help="Times that every network is visited at least; 8 unless told.")
    ] = None,
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
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="A table of another target or machine, to be adapted by timing whole networks alone; or several, or "
            "'known': all there are.",
        ),
    ] = None,
    nets: Annotated[int | None, typer.Option("--nets", help="Networks to time for --from; 40 unless told.")] = None,
    json: Json = False,
) -> None:
    """Build the latency table of a space on this machine."""
    from nas.adaptation import NETS
    from nas.measure import TABLE_ROUNDS, measure_table
    from nas.sources import find_sources
    from nas.tables import tables_dir
    from nas.target import Target
    from nas.train.supernet import space_named
    from search_spaces.errors import InputError

    started = time.monotonic()
    wanted = Target.parse(target)
    networks = space_named(space, classes)
    folder = out or tables_dir()
    if nets is not None and not sources:
        raise InputError("--nets is how many networks to time for --from TABLE; give both, or neither")
    table = measure_table(
        networks,
        wanted,
        folder,
        rounds=rounds or TABLE_ROUNDS,
        minutes=minutes,
        seed=seed,
        resume=resume,
        fresh=fresh,
        sources=find_sources(sources or (), networks, wanted),
        nets=NETS if nets is None else nets,
    )
    found = {
        "table": f"{table.path}.json",
        "rows": len(table.rows),
        "seconds": time.monotonic() - started,
        "quality": table.verdict,
    }
    show(found, json)
