"""Help is quick because it loads nothing heavy, and it says what each command does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nas.cli.main import app

COMMANDS = [
    "quickstart",
    "measure",
    "validate",
    "describe",
    "profile",
    "train",
    "search",
    "retrain",
    "prune",
    "evaluate",
    "export",
    "report",
    "targets",
    "tables",
]
HEAVY = ("torch", "pandas", "optuna", "onnx", "onnxruntime", "timm", "ray", "scipy", "sklearn", "plotly", "accelerate")


def help_of(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `nas ... --help` and print afterwards which heavy packages were loaded."""
    script = (
        f"import sys, atexit; sys.argv = ['nas', *{list(words)!r}, '--help']\n"
        f"atexit.register(lambda: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from nas.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    found = help_of()
    assert found.returncode == 0, found.stderr
    for command in [*COMMANDS, "cascade"]:
        assert command in found.stdout
    assert found.stdout.rstrip().endswith("LOADED []")


@pytest.mark.parametrize("command", [*COMMANDS, "cascade train", "cascade bench"])
def test_help_of_each_command(command: str) -> None:
    found = help_of(*command.split())
    assert found.returncode == 0, found.stderr
    assert "Usage: nas" in found.stdout
    assert "--json" in found.stdout
    assert found.stdout.rstrip().endswith("LOADED []")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/cascade.md",
        "docs/export.md",
        "docs/imagenet.md",
        "docs/latency.md",
        "docs/prune.md",
        "docs/pruning.md",
        "docs/spaces.md",
        "docs/zoo.md",
    ],
)
def test_commands_in_the_documents_have_their_flags(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text()
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [line.partition("   #")[0].split() for line in lines if line.startswith("nas ") and "--help" not in line]
    assert len(commands) >= 3
    for _, name, *words in commands:
        command = typer.main.get_command(app).commands[name]
        command = command.commands[words[0]] if name == "cascade" else command
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        assert {word for word in words if word.startswith("--")} <= known, name
