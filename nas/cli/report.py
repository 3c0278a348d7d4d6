"""`nas report`."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, show

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of a quickstart or a pruning.")], json: Json = False
) -> None:
    """Write `report.html`, one self-contained file, into a run folder."""
    from nas.report import report_run

    show({"path": str(report_run(run))}, json)
