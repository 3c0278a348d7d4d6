"""The engine and the command line: measure, train, search, retrain, export."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.cost import macs as macs
    from nas.cost import params as params
    from nas.latency import LatencyTable as LatencyTable

__all__ = ["LatencyTable", "macs", "params"]

# Loaded when first asked for, so that the command line's help does not wait for torch.
_HOMES = {"LatencyTable": "nas.latency", "macs": "nas.cost", "params": "nas.cost"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
