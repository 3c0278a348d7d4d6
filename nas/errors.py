"""Outcomes other than success that the command line tells apart."""

__all__ = ["BudgetError"]


class BudgetError(Exception):
    """The budget cannot be met; one line with the cheapest possible figure (exit code 3)."""
