"""Networks that ship with their weights, so that commands work offline out of the box; docs/zoo.md says how they were trained."""

from importlib.resources import files
from pathlib import Path

from search_spaces import zoo
from search_spaces.arch import Network

__all__ = ["NAMES", "SHIPPED", "shipped_network"]

SHIPPED = Path(str(files("nas.shipped")))
NAMES = {"contours_vit": "contours", "digits_vit": "digits64"}
"""Of each network, the data set it was trained on; there ship its architecture (JSON) and its weights (safetensors)."""


def shipped_network(name: str) -> Network:
    """The network `name`, one of `NAMES`, with its weights and in eval mode; its `arch` says what it is."""
    return zoo.from_checkpoint(SHIPPED / f"{name}.safetensors")
