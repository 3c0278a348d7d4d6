"""SReT-T against the authors' outputs: recursion, projections, groups and their permutation, on weights that a formula gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces import zoo
from search_spaces.blocks import MB3D
from tests.parity.fill import image, permutation, value

BLOCK = {"coefficient1.bias": "ls1.skip", "coefficient2.bias": "ls1.branch", "coefficient3.bias": "ls2.skip"}
BLOCK |= {"coefficient4.bias": "ls2.branch", "attn.qkv": "token_mixer.qkv", "attn.proj": "token_mixer.proj"}
PROJECTION = {"norm1": "norm", "coefficient1.bias": "join.skip", "coefficient2.bias": "join.branch"}
STEM = {"bn": "norm"}


def renamed(name: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def by_head(rows: Tensor, heads: int) -> Tensor:
    """The release lays out q, k, v and then heads; ours is heads and then q, k, v."""
    return rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def ours(reference: dict[str, Any]) -> dict[str, Tensor]:
    """The released state dict under our names. Entries of a block's loops name one tensor; the last name was filled last."""
    loops, found = 2, dict[str, Tensor]()
    places = [2, 5, 11]  # of the first block of each stage in ours
    for name, shape in reference["state"].items():
        if name in reference["integer_entries"]:
            continue
        filled, parts = value(name, tuple(shape)), name.split(".")
        if name == "pos_embed":
            found["blocks.1.table"] = filled[0]
        elif parts[0] == "patch_embed":
            found[f"blocks.0.{renamed('.'.join(parts[1:]), STEM)}"] = filled
        elif parts[0] == "pools":
            found[f"blocks.{places[int(parts[1]) + 1] - 1}.{'.'.join(parts[2:])}"] = filled
        elif parts[0] in ("norm", "head"):
            found[f"blocks.14.{name}"] = filled
        else:
            stage, entry, rest = int(parts[1]), int(parts[3]), ".".join(parts[4:])
            application, projection = divmod(entry, 2)
            block = f"blocks.{places[stage] + application // loops}"
            if projection:
                found[f"{block}.nll.{application % loops}.{renamed(rest, PROJECTION)}"] = filled
            else:
                filled = by_head(filled, 2 << stage) if "qkv" in rest else filled
                found[f"{block}.{renamed(rest, BLOCK)}"] = filled
    return found


def test_parameters_macs_and_logits() -> None:
    reference = json.loads((Path(__file__).parent / "sret_t.json").read_text())
    arch = zoo.arch("sret_t")
    network = arch.build().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == reference["params"]
    assert sum(spec.macs(state) for spec, state in arch.steps()) == reference["macs"]
    state = ours(reference)
    for name, tokens in network.state_dict().items():
        if name.endswith(
            ".order"
        ):  # the release draws a permutation anew in every forward; the reference took this one
            state[name] = permutation(len(tokens))
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(entry.endswith("num_batches_tracked") for entry in missing)
    with torch.no_grad():
        logits = network(image(reference["image_size"], reference["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "params"), [("sret_t", 4.756), ("sret_lt", 4.988), ("sret_s", 20.900)])
def test_published_parameter_counts(name: str, params: float) -> None:
    arch = zoo.arch(name)
    assert sum(spec.params(state) for spec, state in arch.steps()) == pytest.approx(1e6 * params, rel=2e-4)
    assert {spec.loops for spec in arch.blocks if isinstance(spec, MB3D)} == {2}
