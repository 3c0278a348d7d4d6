"""`nas retrain`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import BudgetMs, DataName, Json, Out, Resume, Seed, show

__all__ = ["retrain"]


def retrain(
    network: Annotated[str, typer.Argument(help="Search run, retrain run, architecture file or zoo name.")],
    data: DataName,
    teacher: Annotated[Path | None, typer.Option("--teacher", help="Retrain run that is distilled from.")] = None,
    budget_ms: BudgetMs = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per step.")] = 128,
    lr: Annotated[float, typer.Option("--lr", help="Largest learning rate.")] = 1e-3,
    out: Out = Path("results/retrain"),
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train one network, from the supernet's weights if it comes from a search, with distillation if there is a teacher."""
    from nas.launch import retrain_network
    from nas.train.loop import Recipe

    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    show(
        retrain_network(network, data, recipe, out, teacher=teacher, budget_ms=budget_ms, resume=resume),
        json,
    )
