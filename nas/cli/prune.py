"""`nas prune`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    CutMix,
    DataName,
    Ema,
    Foreign,
    Json,
    Mixup,
    Out,
    Resume,
    Seed,
    TablePaths,
    TargetNames,
    Weights,
    show,
)

__all__ = ["prune"]

PARTS = "What may be made smaller, of heads,queries,values,neurons,blocks,tokens,fusing,merging,width,resolution; all unless told."
BUDGET = "Milliseconds that it may take, by the median of the runs; with several targets given once for all, or once each, and it holds on every one."
DROP = (
    "Share of search-validation that may be lost, such as 0.01; alone, the fastest network that loses no more is found."
)
ADAPTIVE = "Where what is left drops tokens, learn how many of each image: the budget is held on average."
MODEL = "A dense ViT: contours_vit or digits_vit, timm:NAME, hf:NAME, a checkpoint, a retrain or prune run, or a zoo name with --weights."
IMAGES = "Training images to calibrate on, 4096 at most; no labels."
BASELINES = (
    "Print what else takes as long: a smaller sibling, cuts alike in all blocks, by magnitude, smaller images, int8."
)


def prune(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: DataName,
    table: TablePaths = None,
    target: TargetNames = None,
    budget_ms: Annotated[list[float] | None, typer.Option("--budget-ms", help=BUDGET)] = None,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="How many times as fast it is to be, in place of a budget.")
    ] = None,
    max_drop: Annotated[float | None, typer.Option("--max-drop", help=DROP)] = None,
    train_epochs: Annotated[
        int,
        typer.Option(
            "--train-epochs", min=0, help="Passes over the training images that heal what is left; 0 is none."
        ),
    ] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per step of that training.")] = 64,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Its largest learning rate.", show_default="0.032 / embedding width")
    ] = None,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of its AdamW; 0 is none.")] = 1e-6,
    ema: Ema = 0.0,
    mixup: Mixup = 0.0,
    cutmix: CutMix = 0.0,
    adaptive: Annotated[bool, typer.Option("--adaptive", help=ADAPTIVE)] = False,
    weights: Weights = None,
    images: Annotated[int, typer.Option("--images", min=1, help=IMAGES)] = 256,
    baselines: Annotated[bool, typer.Option("--baselines", help=BASELINES)] = False,
    parts: Annotated[str, typer.Option("--parts", help=PARTS)] = "",
    out: Out = Path("results/prune"),
    seed: Seed = 0,
    resume: Resume = False,
    foreign_table: Foreign = False,
    json: Json = False,
) -> None:
    """Make a trained ViT smaller until it is measured to hold a latency budget, or an accuracy; train what is left."""
    from nas.pruning import PARTS as EVERY
    from nas.pruning import Healing, prune_network
    from nas.pruning.sheets import print_sheets

    healing = Healing(train_epochs, batch_size, lr, weight_decay, ema, mixup, cutmix, adaptive)

    found = prune_network(
        model,
        data,
        out,
        table=table,
        target=target,
        budget_ms=budget_ms,
        speedup=speedup,
        max_drop=max_drop,
        healing=healing,
        weights=weights,
        images=images,
        parts=tuple(parts.split(",")) if parts else EVERY,
        seed=seed,
        foreign=foreign_table,
        baselines=baselines,
        resume=resume,
    )
    print_sheets(found)
    show(found if json else {name: value for name, value in found.items() if not isinstance(value, dict | list)}, json)
