"""`nas prune`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import DataName, Foreign, Json, Out, Resume, Seed, TablePath, TargetName, Weights, show

__all__ = ["prune"]

PARTS = "What may be made smaller, of heads,queries,values,neurons,blocks,tokens,width,resolution; all unless told."
MODEL = "A dense ViT: contours_vit or digits_vit, timm:NAME, hf:NAME, a checkpoint, a retrain or prune run, or a zoo name with --weights."


def prune(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: DataName,
    table: TablePath = None,
    target: TargetName = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="Milliseconds that it may take.")] = None,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="How many times as fast it is to be, in place of a budget.")
    ] = None,
    weights: Weights = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Training images to calibrate on; no labels.")] = 256,
    parts: Annotated[str, typer.Option("--parts", help=PARTS)] = "",
    out: Out = Path("results/prune"),
    seed: Seed = 0,
    resume: Resume = False,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Remove heads, widths, neurons and blocks of a trained ViT until it is measured to hold a latency budget."""
    from nas.pruning import PARTS as EVERY
    from nas.pruning import prune_network

    found = prune_network(
        model,
        data,
        out,
        table=table,
        target=target,
        budget_ms=budget_ms,
        speedup=speedup,
        weights=weights,
        images=images,
        parts=tuple(parts.split(",")) if parts else EVERY,
        seed=seed,
        foreign=foreign_table,
        resume=resume,
    )
    show(found, json)
