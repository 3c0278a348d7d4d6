"""Which of several processes this one is, where torchrun started them to train together."""

import os
from typing import Any

__all__ = ["accelerator", "leads", "processes"]


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the first of them, or the only one: it alone writes, evaluates and speaks."""
    return os.environ.get("RANK", "0") == "0"


def accelerator() -> Any:
    """Accelerate's `Accelerator` among them. On CPUs it takes each process for the only one unless it is told."""
    import torch
    from accelerate import Accelerator

    return Accelerator(cpu=processes() > 1 and not torch.accelerator.is_available())
