"""The command line: one small file a command, heavy imports inside the commands, so that `--help` is quick."""

from nas.cli.main import main

__all__ = ["main"]
