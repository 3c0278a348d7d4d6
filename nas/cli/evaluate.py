"""`nas evaluate`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, DataName, Json, Limit, SplitName, Weights, show

__all__ = ["evaluate"]


def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            help="Retrain run, search run, checkpoint, contours_vit, digits_vit, zoo name, timm:NAME, hf:NAME, exported file (.onnx, .xml, .pt2), or folder of a cascade's files."
        ),
    ],
    data: DataName,
    weights: Weights = None,
    budget_ms: BudgetMs = None,
    split: SplitName = "test",
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Accuracy of a trained run or of an exported file."""
    from nas.launch.evaluate import evaluate_network

    show(evaluate_network(network, data, split, limit, weights=weights, budget_ms=budget_ms), json)
