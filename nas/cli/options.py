"""Options that several commands share, and how results are printed."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nas.processes import leads
from search_spaces.errors import InputError

__all__ = [
    "BatchSize",
    "BudgetMs",
    "CheckData",
    "Command",
    "CutMix",
    "DataName",
    "Ema",
    "Epochs",
    "Foreign",
    "Json",
    "LearningRate",
    "Limit",
    "Mixup",
    "NetworkName",
    "Optimizer",
    "Out",
    "Resume",
    "Seed",
    "SplitName",
    "TablePath",
    "TablePaths",
    "TargetName",
    "TargetNames",
    "WeightDecay",
    "Weights",
    "budgets",
    "fractions",
    "show",
    "whole_numbers",
]

NETWORKS = "Zoo name, contours_vit, digits_vit, timm:NAME, hf:NAME, checkpoint, architecture file (JSON), retrain or search run."
EMA = "Decay of the mean of the weights over the steps, such as 0.999, that is kept; 0 keeps the last weights."
DATA_NAMES = "digits, digits64, contours, contours224, imagefolder:PATH, torchvision:NAME[@FOLDER] or hf:NAME."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Everything that is drawn follows from it, but for how data are split.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left in --out.")]
DataName = Annotated[str, typer.Option("--data", help=DATA_NAMES)]
CheckData = Annotated[
    str | None, typer.Option("--data", help="Compare file and network on its search-validation images.")
]
TargetName = Annotated[
    str | None, typer.Option("--target", help="Device, runtime, dtype, batch, threads: cpu-ort-fp32-b1-t1.")
]
TablePath = Annotated[
    Path | None,
    typer.Option(
        "--table", help="Latency table (.csv or .json) that `nas measure` wrote, or a name that `nas tables` lists."
    ),
]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="Which winner of a search run.")]
TablePaths = Annotated[
    list[Path] | None,
    typer.Option(
        "--table",
        help="Latency table (.csv or .json) that `nas measure` wrote, or a name that `nas tables` lists; may be repeated.",
    ),
]
TargetNames = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Device, runtime, dtype, batch, threads: cpu-ort-fp32-b1-t1; may be repeated. Tables come before targets.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Checkpoint (.safetensors, .pth) of a zoo network, in its authors' naming."),
]
Foreign = Annotated[bool, typer.Option("--foreign-table", help="Accept a table that another machine measured.")]
NetworkName = Annotated[str, typer.Argument(help=NETWORKS)]
SplitName = Annotated[str, typer.Option("--split", help="train, val or test.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many images.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per step.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Largest learning rate.")]
Optimizer = Annotated[str, typer.Option("--opt", help="timm's name of the optimizer, such as adamw, muon, lamb.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", help="0 is none.")]
Ema = Annotated[float, typer.Option("--ema", help=EMA)]
Mixup = Annotated[float, typer.Option("--mixup", help="Alpha of mixup, such as 0.8; 0 is none.")]
CutMix = Annotated[float, typer.Option("--cutmix", help="Alpha of CutMix, such as 1; 0 is none.")]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which it would silently take the last, unless it takes several."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # its base is private
        """See click.

        Raises:
            InputError: an option is repeated.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            if times > 1 and not option.multiple:
                raise InputError(f"{option.opts[0]} is given {times} times; give it once")
        return super().parse_args(ctx, args)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, by the first of several processes: one JSON object, or a line for each field."""
    if not leads():
        return
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            _show_rows(name, value)
        else:
            print(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nested(value: Any) -> bool:
    """Whether a value is an object, or a list of nothing else."""
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _show_rows(name: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [column for column, value in rows[0].items() if not _nested(value)]  # those are in the JSON
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(_text(row[column]) for column in columns))
    Console(width=None if Console().is_terminal else 200, markup=False).print(table)  # brackets are meant


def budgets(text: str) -> tuple[float, ...]:
    """Milliseconds from `A[,B...]`.

    Raises:
        InputError: not numbers, or not positive and finite.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--budget-ms takes milliseconds such as 1.5 or 1,1.5,2, got {text!r}") from error
    if not all(0 < value < float("inf") for value in values):
        raise InputError(f"--budget-ms must be positive and finite, got {text!r}")
    return values


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers from `A[,B...]`, as the flag has them.

    Raises:
        InputError: not whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} takes whole numbers such as 192,224,256, got {text!r}") from error


def fractions(flag: str, text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1 from `A[,B...]`, as the flag has them.

    Raises:
        InputError: not numbers, or not from 0 to 1.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} takes fractions such as 0.5,0.3,0.2, got {text!r}") from error
    if not all(0 <= value <= 1 for value in values):
        raise InputError(f"{flag} takes fractions from 0 to 1, got {text!r}")
    return values
