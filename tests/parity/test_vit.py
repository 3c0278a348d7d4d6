"""DeiT-Ti and AS-ViT on it against the authors' outputs, on weights that a formula gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces import InputError, zoo
from search_spaces.arch import Arch, Network
from search_spaces.tokens import Chosen
from search_spaces.zoo.vit import released, vit
from tests.parity.fill import image, value


def reference(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    return found


def filled(parity: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value(name, tuple(shape)) for name, shape in parity["state"].items()}


def loaded(arch: Arch, state: dict[str, Tensor]) -> Network:
    network = arch.build()
    network.load_state_dict(released(state, arch))
    return network


@pytest.fixture(scope="module")
def pruned() -> tuple[dict[str, Any], Network]:
    parity = reference("asvit_deit_tiny")
    state = filled(parity)
    for number, threshold in enumerate(parity["thresholds"]):
        state[f"score_predictor.{number}.keep_threshold"] = torch.tensor(threshold)
    return parity, loaded(vit(3, tuple(parity["pruning_locations"])), state)


def test_deit_parameters_macs_and_logits() -> None:
    parity, arch = reference("deit_tiny_patch16_224"), zoo.arch("deit_tiny_patch16_224")
    assert sum(spec.params(state) for spec, state in arch.steps()) == parity["params"]
    assert sum(spec.macs(state) for spec, state in arch.steps()) == parity["macs"]
    network = loaded(arch, filled(parity)).eval()
    with torch.no_grad():
        logits = network(image(224, parity["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(parity["logits"]), rtol=1e-4, atol=1e-4)


def test_pruning_one_by_one_and_in_a_batch(pruned: tuple[dict[str, Any], Network]) -> None:
    """Counts, places and logits; the batch is packed, and each image keeps what it keeps alone."""
    parity, network = pruned
    network.eval()
    images = image(224, parity["batch"])
    assert sum(weight.numel() for weight in network.parameters()) == parity["params"]
    for number, wanted in enumerate(parity["kept_indices"]):
        trace: list[Chosen] = []
        with torch.no_grad():
            logits = network(images[number : number + 1], trace)
        assert [one.kept[0].nonzero()[:, 0].tolist() for one in trace] == wanted
        torch.testing.assert_close(logits[0, :100], torch.tensor(parity["logits"][number]), rtol=1e-4, atol=1e-4)
    together: list[Chosen] = []
    with torch.no_grad():
        logits = network(images, together)
    assert torch.stack([one.counts for one in together], 1).tolist() == parity["kept_tokens"]
    torch.testing.assert_close(logits[:, :100], torch.tensor(parity["logits"]), rtol=1e-4, atol=1e-4)


def test_the_training_forward(pruned: tuple[dict[str, Any], Network]) -> None:
    parity, network = pruned
    network.train()
    wanted, trace = parity["training"], list[Chosen]()
    logits = network(image(224, parity["batch"]), trace)
    torch.testing.assert_close(logits[:, :100], torch.tensor(wanted["logits"]), rtol=1e-4, atol=1e-4)
    assert torch.stack([one.counts for one in trace], 1).round().long().tolist() == wanted["kept"]
    for one, scores in zip(trace, wanted["scores"], strict=True):
        torch.testing.assert_close(one.scores[0, :20], torch.tensor(scores), rtol=1e-4, atol=1e-6)
    sum(one.counts.mean() for one in trace).backward()
    thresholds = [weight for name, weight in network.named_parameters() if name.endswith("threshold")]
    assert len(thresholds) == 3
    assert all(weight.grad is not None and weight.grad < 0 for weight in thresholds), "a higher threshold keeps fewer"


def test_an_entry_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"blocks\.12\.norm1\.weight has no place"):
        released({"blocks.12.norm1.weight": torch.ones(192)}, zoo.arch("deit_tiny_patch16_224"))
