"""`nas`: the commands, and how a failure becomes one line and an exit code."""

import errno
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from nas.cli.cascade import cascade
from nas.cli.describe import describe
from nas.cli.evaluate import evaluate
from nas.cli.export import export
from nas.cli.measure import measure
from nas.cli.options import Command
from nas.cli.profile import profile
from nas.cli.prune import prune
from nas.cli.quickstart import quickstart
from nas.cli.report import report
from nas.cli.retrain import retrain
from nas.cli.search import search
from nas.cli.tables import tables
from nas.cli.targets import targets
from nas.cli.train import train
from nas.cli.validate import validate
from nas.errors import BudgetError
from search_spaces.errors import InputError

__all__ = ["main"]

BAD_INPUT, BUDGET, INTERRUPTED = 2, 3, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

app = typer.Typer(
    name="nas",
    help="Search and compress vision transformers under measured per-device latency.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    quickstart,
    measure,
    validate,
    describe,
    profile,
    train,
    search,
    retrain,
    prune,
    evaluate,
    export,
    report,
    targets,
    tables,
):
    app.command(cls=Command)(command)
app.add_typer(cascade, name="cascade")


def _fail(message: str, code: int) -> NoReturn:
    print(f"nas: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    _fail("interrupted; the same command goes on with --resume, where it has that, or starts anew", INTERRUPTED)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 3 the budget cannot be met, 130 interrupted."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except InputError as error:
        _fail(str(error), BAD_INPUT)
    except BudgetError as error:
        _fail(str(error), BUDGET)
    except OSError as error:
        if error.errno in FULL:
            _fail(
                f"cannot write {error.filename or 'a file'}: {error.strerror}; free the space and run it again, with --resume "
                "where the command has that",
                BAD_INPUT,
            )
        if error.errno not in UNREACHABLE or error.filename is None:
            raise
        _fail(
            f"cannot read or write {error.filename!s:.200}: {error.strerror}; check the path, and who may use it",
            BAD_INPUT,
        )
