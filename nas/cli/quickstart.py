"""`nas quickstart`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Out, Resume, Seed, show

__all__ = ["quickstart"]


def quickstart(
    out: Out = Path("results/quickstart"),
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Networks to evaluate in the search.")] = None,
    largest_epochs: Annotated[
        int | None,
        typer.Option("--largest-epochs", min=0, help="Epochs of the largest network alone, before the supernet."),
    ] = None,
    supernet_epochs: Annotated[
        int | None, typer.Option("--supernet-epochs", min=1, help="Epochs of the supernet.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs of each network that is retrained.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=4, help="Timing rounds of the latency table.")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Measure, train, search, retrain, verify, export and report, on embedded data."""
    from nas.quickstart import Quickstart, Settings

    chosen = Settings(seed=seed)
    settings = replace(
        chosen,
        trials=trials or chosen.trials,
        largest_epochs=chosen.largest_epochs if largest_epochs is None else largest_epochs,
        supernet_epochs=supernet_epochs or chosen.supernet_epochs,
        epochs=epochs or chosen.epochs,
        rounds=rounds or chosen.rounds,
    )
    show(Quickstart(settings, out, resume=resume)(), json)
