"""Imports only go from `nas` to `compress` to `search_spaces`, wherever in a file they stand."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "search_spaces": {"search_spaces"},
    "compress": {"search_spaces", "compress"},
    "nas": {"search_spaces", "compress", "latency_tables", "nas"},
    "latency_tables": {"latency_tables"},
}


def imported(source: str) -> set[str]:
    """Top-level names that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_never_go_back(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path.read_text()) & ALLOWED.keys() <= ALLOWED[package], path


def test_search_spaces_needs_little() -> None:
    """Torch and numpy, and safetensors to read weights."""
    known = {"search_spaces", "torch", "numpy", "safetensors"}
    import sys

    for path in (ROOT / "search_spaces").rglob("*.py"):
        assert {name for name in imported(path.read_text()) if name not in sys.stdlib_module_names} <= known, path


def test_a_forbidden_import_would_be_seen() -> None:
    assert imported("def f():\n    from nas.data import load\n    import torch.nn") == {"nas", "torch"}


def test_every_package_is_installed() -> None:
    held = {path.parent.relative_to(ROOT) for name in ALLOWED for path in (ROOT / name).rglob("*.py")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {".".join(path.parts) for path in held} == {*project["tool"]["setuptools"]["packages"]}
