"""`nas evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import DataName, Json, show

__all__ = ["evaluate"]


def evaluate(
    network: Annotated[Path, typer.Argument(help="Retrain run, or exported .onnx file.")],
    data: DataName,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many images.")] = None,
    json: Json = False,
) -> None:
    """Accuracy of a trained run or of an exported file."""
    from nas.launch import evaluate_network

    show(evaluate_network(network, data, split, limit), json)
