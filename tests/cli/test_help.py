"""Help is quick because it loads nothing heavy, and it says what each command does."""

import subprocess
import sys

import pytest

COMMANDS = [
    "quickstart",
    "measure",
    "validate",
    "describe",
    "train",
    "search",
    "retrain",
    "evaluate",
    "export",
    "report",
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
    for command in COMMANDS:
        assert command in found.stdout
    assert found.stdout.rstrip().endswith("LOADED []")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    found = help_of(command)
    assert found.returncode == 0, found.stderr
    assert "Usage: nas" in found.stdout
    assert "--json" in found.stdout
    assert found.stdout.rstrip().endswith("LOADED []")
