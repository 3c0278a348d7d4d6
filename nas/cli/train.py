"""`nas train`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import BatchSize, DataName, Epochs, Json, LearningRate, Optimizer, Out, Resume, Seed, show

__all__ = ["train"]


def train(
    space: Annotated[str, typer.Option("--space", help="The space whose supernet to train.")],
    data: DataName,
    epochs: Epochs = 6,
    batch_size: BatchSize = 128,
    largest_epochs: Annotated[
        int,
        typer.Option(
            "--largest-epochs",
            min=0,
            help="Train the largest network alone first, for so many epochs; the supernet starts from it.",
        ),
    ] = 0,
    lr: LearningRate = 2e-3,
    opt: Optimizer = "adamw",
    out: Out = Path("results/supernet"),
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train a supernet with the sandwich rule and in-place distillation."""
    from nas import data as datasets
    from nas.train.loop import Recipe
    from nas.train.supernet import space_named, train_supernet

    images = datasets.load(data, image_size=space_named(space, 1).largest.image_size)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, opt=opt)
    networks = space_named(space, images.classes)
    show(train_supernet(networks, images, recipe, out, largest_epochs=largest_epochs, resume=resume), json)
