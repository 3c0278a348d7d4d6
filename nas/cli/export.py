"""`nas export`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import BudgetMs, CheckData, Foreign, Json, Out, Seed, Weights, show

__all__ = ["export"]

STATIC = "Keep the same number of patches of every image, the mean of what thresholds keep: such a file takes batches."
INT8 = "Weights and activations in int8, their ranges told by training images of --data, or of what the run was trained on."
CHECKED_ON = "What the file is checked and timed on, such as cpu-ort-fp32-b1-t1."


def export(
    network: Annotated[
        str,
        typer.Argument(
            help="Retrain run, search run, checkpoint, architecture file, contours_vit, digits_vit, timm:NAME, hf:NAME, or zoo name (random weights, without --weights)."
        ),
    ],
    weights: Weights = None,
    format: Annotated[
        str, typer.Option("--format", help="onnx, openvino (.xml and .bin) or pt2 (torch.export).")
    ] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help=INT8)] = False,
    target: Annotated[str | None, typer.Option("--target", help=CHECKED_ON, show_default="as the format")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Latency table that predicts its time.")] = None,
    data: CheckData = None,
    budget_ms: BudgetMs = None,
    static: Annotated[bool, typer.Option("--static", help=STATIC)] = False,
    out: Out = Path("results/export"),
    seed: Seed = 0,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Write a network for its target runtime, check its outputs there, and time it."""
    from nas.launch.export import export_network

    found = export_network(
        network,
        format,
        target,
        table,
        out,
        seed,
        int8=int8,
        weights=weights,
        dataset=data,
        budget_ms=budget_ms,
        static=static,
        foreign=foreign_table,
    )
    show(found, json)
