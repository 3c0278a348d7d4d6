"""Measured latency tables that ship with the package."""

from importlib.resources import files
from pathlib import Path

__all__ = ["SHIPPED"]

SHIPPED = Path(str(files("latency_tables")))
