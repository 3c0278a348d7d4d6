"""`nas retrain`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    BatchSize,
    BudgetMs,
    CutMix,
    DataName,
    Ema,
    Epochs,
    Foreign,
    Json,
    LearningRate,
    Mixup,
    Optimizer,
    Out,
    Resume,
    Seed,
    WeightDecay,
    Weights,
    show,
    whole_numbers,
)

__all__ = ["retrain"]

TEACHER = "What is distilled from: a network with weights (run, checkpoint, contours_vit, digits_vit, hf:NAME), timm:NAME with timm's weights, or timm:NAME@FILE.safetensors; for an encoder an encoder, whose features it follows."
SIDES = "Pixels, A,B[,...]: each batch is of one of these image sizes, and of as many images as keep its pixels."
SIZE = "Retrain the network for images of so many pixels a side, its weights interpolated where they belong to a grid."
DEPTH = "Train it with fewer loops too, drawn for each step, and say how good it is with each number of them."
THRESHOLDS = (
    "Learn how many patches each image keeps: a mean cost of what the network's token_prune blocks keep is held."
)
FRESH = "Give an encoder a classifier of the data's classes, which starts afresh, and train that."
TABLE = "With --thresholds: latency table whose ms are the cost, else MACs are."
TARGET = "With --thresholds: target whose ms are the cost, from this machine's table of it."
COST = "With --thresholds: mean cost to hold, in ms with --table or --target, else in MACs."


def retrain(
    network: Annotated[
        str,
        typer.Argument(
            help="Search run, retrain run, checkpoint, architecture file, contours_vit, digits_vit, zoo name, timm:NAME or hf:NAME."
        ),
    ],
    data: DataName,
    weights: Weights = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help=TEACHER)] = None,
    teacher_weight: Annotated[
        float | None, typer.Option("--teacher-weight", help="Its share of the loss, 0 to 1.", show_default="0.5")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="That softens the scores distilled.", show_default="2; 1 with --thresholds"),
    ] = None,
    budget_ms: BudgetMs = None,
    epochs: Epochs = 10,
    batch_size: BatchSize = 128,
    lr: LearningRate = 1e-3,
    opt: Optimizer = "adamw",
    weight_decay: WeightDecay = 0.05,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", help="From 0, none, to below 1.")] = 0.1,
    ema: Ema = 0.0,
    mixup: Mixup = 0.0,
    cutmix: CutMix = 0.0,
    sides: Annotated[str | None, typer.Option("--sides", help=SIDES)] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", min=1, help=SIZE)] = None,
    fresh_head: Annotated[bool, typer.Option("--fresh-head", help=FRESH)] = False,
    mixed_depth: Annotated[bool, typer.Option("--mixed-depth", help=DEPTH)] = False,
    thresholds: Annotated[bool, typer.Option("--thresholds", help=THRESHOLDS)] = False,
    table: Annotated[Path | None, typer.Option("--table", help=TABLE)] = None,
    foreign_table: Foreign = False,
    target: Annotated[str | None, typer.Option("--target", help=TARGET)] = None,
    target_cost: Annotated[
        float | None, typer.Option("--target-cost", help=COST, show_default="what the network costs as it is")
    ] = None,
    out: Out = Path("results/retrain"),
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train one network, from the supernet's weights if it comes from a search, with distillation if there is a teacher."""
    from nas.launch.retrain import retrain_network
    from nas.train.loop import Recipe

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        opt=opt,
        weight_decay=weight_decay,
        smoothing=label_smoothing,
        ema=ema,
        mixup=mixup,
        cutmix=cutmix,
        sides=() if sides is None else whole_numbers("--sides", sides),
        seed=seed,
        mixed_depth=mixed_depth,
    )
    found = retrain_network(
        network,
        data,
        recipe,
        out,
        weights=weights,
        teacher=teacher,
        teacher_weight=teacher_weight,
        temperature=temperature,
        budget_ms=budget_ms,
        image_size=image_size,
        thresholds=thresholds,
        table=table,
        foreign=foreign_table,
        target=target,
        target_cost=target_cost,
        fresh_head=fresh_head,
        resume=resume,
    )
    show(found, json)
