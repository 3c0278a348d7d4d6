"""`nas evaluate`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, DataName, Json, Weights, show

__all__ = ["evaluate"]


def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            help="Retrain run, search run, checkpoint, contours_vit, digits_vit, zoo name, timm:NAME, hf:NAME, or exported file (.onnx, .xml, .pt2)."
        ),
    ],
    data: DataName,
    weights: Weights = None,
    budget_ms: BudgetMs = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many images.")] = None,
    json: Json = False,
) -> None:
    """Accuracy of a trained run or of an exported file."""
    from nas.launch import evaluate_network

    show(evaluate_network(network, data, split, limit, weights=weights, budget_ms=budget_ms), json)
