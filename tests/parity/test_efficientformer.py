"""EfficientFormer against the authors' outputs: parameters, MACs and logits on weights that a formula gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import zoo
from tests.parity.fill import image, value


def ours(reference: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The released state dict under our names: blocks counted through, norm and heads together."""
    state: dict[str, torch.Tensor] = {}
    seen: dict[str, int] = {}
    for name, shape in reference["state"].items():
        if name in reference["integer_entries"]:
            continue
        parts = name.split(".")
        size = {"stem": 1, "stages": 4 if parts[2:3] == ["blocks"] else 3}.get(parts[0], 0)
        block = ".".join(parts[:size])
        position = seen.setdefault(block, len(seen))
        state[f"blocks.{position}.{'.'.join(parts[size:])}"] = value(name, tuple(shape))
    return state


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l7"])
def test_parameters_macs_and_logits(name: str) -> None:
    reference = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    arch = zoo.arch(name)
    network = arch.build().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == reference["params"]
    assert sum(spec.macs(state) for spec, state in arch.steps()) == reference["macs"]
    missing, unexpected = network.load_state_dict(ours(reference), strict=False)
    assert not unexpected
    assert all(entry.endswith("num_batches_tracked") for entry in missing)
    with torch.no_grad():
        logits = network(image(reference["image_size"], reference["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)
