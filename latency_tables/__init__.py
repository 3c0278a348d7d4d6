"""Measured latency tables that ship with the package."""

from pathlib import Path

__all__ = ["SHIPPED"]

SHIPPED = Path(__file__).parent
