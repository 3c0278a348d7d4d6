"""The command line as tests run it: `nas` in this process, where all is imported, or `started` in one of its own."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from nas.cli.main import app, main
from nas.data import DATASETS
from search_spaces import SPACES
from tests.nas.toy import toy, toy_space, toy_vit

__all__ = ["here", "nas", "printed", "started"]

SCRIPT = """
    import sys
    import torch
    from nas.data import DATASETS
    from search_spaces import SPACES
    from tests.nas.toy import toy, toy_space, toy_vit
    torch.set_num_threads(1)
    SPACES["hybrid_toy"], SPACES["vit_toy"] = toy_space, toy_vit
    DATASETS["toy"] = lambda path, image_size, seed: toy(512)
    from nas.cli import main
    sys.argv[0] = "nas"
    main()
"""


def started(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that has run in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600
    )  # seconds, of a slow machine


def here(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that has run in this process."""
    command, out, err = ["nas", *map(str, words)], StringIO(), StringIO()
    spaces, sets = {"hybrid_toy": toy_space, "vit_toy": toy_vit}, {"toy": lambda path, image_size, seed: toy(512)}
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.dict(SPACES, spaces),
        patch.dict(DATASETS, sets),
        patch("nas.cli.main.signal"),  # tests are interrupted as ever
        patch("sys.argv", command),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return subprocess.CompletedProcess(command, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def printed(*words: object) -> Any:
    """The JSON that a command prints; raises what it raises. It knows no toys but those that the caller makes known."""
    found = CliRunner().invoke(app, [*map(str, words), "--json"])
    if found.exception is not None:
        raise found.exception
    return json.loads(found.stdout)


def nas(*words: object, code: int = 0, run: Callable[..., subprocess.CompletedProcess[str]] = here) -> Any:
    """The JSON that a command prints, or the last line of stderr where it is to fail."""
    found = run(*words, "--json")
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout) if code == 0 else found.stderr.strip().splitlines()[-1]
