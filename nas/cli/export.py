"""`nas export`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Out, Seed, show

__all__ = ["export"]


def export(
    network: Annotated[str, typer.Argument(help="Retrain run, architecture file or zoo name (random weights).")],
    format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    target: Annotated[
        str, typer.Option("--target", help="What the file is checked and timed on.")
    ] = "cpu-ort-fp32-b1-t1",
    table: Annotated[Path | None, typer.Option("--table", help="Latency table that predicts its time.")] = None,
    out: Out = Path("results/export"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a network for its target runtime, check its outputs there, and time it."""
    from nas.launch import export_network

    show(export_network(network, format, target, table, out, seed), json)
