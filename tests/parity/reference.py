"""The authors' outputs, and the weights that a formula gives in their naming."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.parity.fill import value

__all__ = ["filled", "reference"]


def reference(name: str) -> dict[str, Any]:
    """What `name`.json holds."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    return found


def filled(parity: dict[str, Any]) -> dict[str, Tensor]:
    """The released state dict without counters and index tables, which it may lack."""
    integers = set(parity.get("integer_entries", ()))
    return {name: value(name, tuple(shape)) for name, shape in parity["state"].items() if name not in integers}
