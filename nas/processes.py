"""Which of several processes this one is, where torchrun started them to train together."""

import os

__all__ = ["leads", "processes"]


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the first of them, or the only one: it alone writes, evaluates and speaks."""
    return os.environ.get("RANK", "0") == "0"
