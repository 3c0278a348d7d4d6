"""What this machine can measure, and what it lacks for the rest."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nas.runtimes import RUNTIMES, Runtime
from nas.target import cpu_name, target_form

__all__ = ["targets"]


def targets() -> dict[str, Any]:
    """Every device, runtime and type of numbers that this version knows, and the machine.

    Returns:
        JSON-ready: `cpu`, `cores`, `gpu` (its name, or None), and `targets`: for each its `target`, with N for the numbers,
        `package` with its version, or None where it is not installed, `measurable` here, and what it `lacks`, or None.
    """
    found = []
    for name, runtime in RUNTIMES.items():
        for device, dtypes in runtime.dtypes.items():
            lacking = runtime.lacks(device)
            about = {"package": _package(runtime), "measurable": lacking is None, "lacks": lacking}
            found += [{"target": target_form(device, name, dtype), **about} for dtype in dtypes]
    return {"cpu": cpu_name(), "cores": os.cpu_count() or 1, "gpu": _gpu_name(), "targets": found}


def _package(runtime: Runtime) -> str | None:
    try:
        return f"{runtime.package} {version(runtime.package)}"
    except PackageNotFoundError:
        return None


def _gpu_name() -> str | None:
    """The first CUDA device, as torch names it."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
