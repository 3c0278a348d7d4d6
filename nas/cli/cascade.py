"""`nas cascade`: a group of commands."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    BatchSize,
    CheckData,
    Command,
    CutMix,
    DataName,
    Ema,
    Epochs,
    Foreign,
    Json,
    LearningRate,
    Limit,
    Mixup,
    Optimizer,
    Out,
    Resume,
    Seed,
    SplitName,
    TablePath,
    TargetName,
    WeightDecay,
    Weights,
    show,
)

__all__ = ["cascade"]

NETWORKS = (
    "A cascade (zoo name, checkpoint, architecture file or run), or two networks or more from coarse to fine, as nas retrain "
    "takes them."
)
CALIBRATED = "Folder that `nas cascade train` wrote; with --out, any cascade with weights: a checkpoint, or a zoo name and --weights."
RUN = "Folder that `nas cascade train` wrote, or `nas cascade calibrate` with --out."
EXPORTED = "Folder that `nas cascade train` wrote, checkpoint, architecture file, or zoo name (random weights, without --weights)."
cascade = typer.Typer(
    help="A cascade of ViTs from coarse to fine, where images leave at the first exit that is sure (DVT).",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help=RUN)]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of torch.")]


@cascade.command(cls=Command)
def train(
    networks: Annotated[list[str], typer.Argument(help=NETWORKS)],
    data: DataName,
    feature_reuse: Annotated[bool, typer.Option(help="Later stages reuse features of the one before.")] = True,
    relation_reuse: Annotated[bool, typer.Option(help="Later stages reuse its attention logits.")] = True,
    epochs: Epochs = 10,
    batch_size: BatchSize = 128,
    lr: LearningRate = 1e-3,
    opt: Optimizer = "adamw",
    weight_decay: WeightDecay = 0.05,
    ema: Ema = 0.0,
    mixup: Mixup = 0.0,
    cutmix: CutMix = 0.0,
    out: Out = Path("results/cascade"),
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train all exits at once, from the networks' own weights where they have some."""
    from nas.cascade.commands import train_named
    from nas.train.loop import Recipe

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        opt=opt,
        weight_decay=weight_decay,
        ema=ema,
        mixup=mixup,
        cutmix=cutmix,
        seed=seed,
    )
    found = train_named(
        networks, data, recipe, out, feature_reuse=feature_reuse, relation_reuse=relation_reuse, resume=resume
    )
    show(found, json)


@cascade.command(cls=Command)
def calibrate(
    network: Annotated[str, typer.Argument(help=CALIBRATED)],
    data: DataName,
    weights: Weights = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="Mean milliseconds of an image.")] = None,
    budget_macs: Annotated[float | None, typer.Option("--budget-macs", help="Mean MACs of an image.")] = None,
    table: TablePath = None,
    target: TargetName = None,
    foreign_table: Foreign = False,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images at a time that torch is timed on.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to put the network and its thresholds in; without it, the run's own.")
    ] = None,
    json: Json = False,
) -> None:
    """Solve for thresholds that hold a budget on search-validation, and keep them in the run's folder, or in --out.

    Milliseconds are those of --table or --target, without either of torch on this machine.
    """
    from nas.cascade.commands import Prices, calibrate_named

    prices = Prices(table, target, foreign_table, batch, threads)
    budgets = {"budget_ms": budget_ms, "budget_macs": budget_macs}
    show(calibrate_named(network, data, **budgets, prices=prices, weights=weights, out=out), json)


@cascade.command(cls=Command)
def run(
    run: Folder,
    data: DataName,
    split: SplitName = "test",
    batch: Batch = 1,
    threads: Threads = 1,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Run it: images that leave are in no later batch. Accuracy, and which share leaves where."""
    from nas.cascade.commands import run_run

    show(run_run(run, data, split=split, batch=batch, threads=threads, limit=limit), json)


@cascade.command(cls=Command)
def export(
    network: Annotated[str, typer.Argument(help=EXPORTED)],
    data: CheckData = None,
    weights: Weights = None,
    out: Out = Path("results/cascade-files"),
    batch: Batch = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write one ONNX file of each exit, which takes what the one before passes on, and check them in a row."""
    from nas.cascade.commands import export_named

    show(export_named(network, out, batch=batch, weights=weights, dataset=data, seed=seed), json)


@cascade.command(cls=Command)
def bench(
    run: Folder,
    data: DataName,
    split: SplitName = "test",
    batch: Batch = 1,
    threads: Threads = 1,
    limit: Limit = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Images a second with early exit, against all stages for all images, on the same batches in turn."""
    from nas.cascade.commands import bench_run

    show(bench_run(run, data, split=split, batch=batch, threads=threads, limit=limit, seed=seed), json)
