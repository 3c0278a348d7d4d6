"""What networks are held to: reference files, and timm's models, both on weights that a formula gives."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.parity.fill import value

__all__ = ["assert_logits", "filled", "reference", "timm_model"]


def reference(name: str) -> dict[str, Any]:
    """What `name`.json holds."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    return found


def filled(parity: dict[str, Any], integers: bool = False) -> dict[str, Tensor]:
    """The released state dict of a reference file; with `integers`, its counters and index tables too, which mean nothing here."""
    shapes = {name: tuple(shape) for name, shape in parity["state"].items()}
    counted = {name: torch.zeros(shapes.pop(name), dtype=torch.long) for name in parity["integer_entries"]}
    return {name: value(name, shape) for name, shape in shapes.items()} | (counted if integers else {})


def timm_model(name: str, **options: Any) -> nn.Module:
    """timm's model in eval mode, filled by the formula; nothing is downloaded."""
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    state = model.state_dict()
    floats = {key: value(key, tuple(own.shape)) for key, own in state.items() if own.is_floating_point()}
    model.load_state_dict({**state, **floats})
    return model.eval()


def assert_logits(found: Tensor, wanted: Tensor) -> None:
    """Within 1e-4, times the standard deviation of what is wanted where that is above 1."""
    bar = 1e-4 * max(1.0, float(wanted.std()))
    assert float((found - wanted).abs().max()) <= bar
