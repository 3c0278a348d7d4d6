"""DeiT and AS-ViT on it against the authors' outputs and timm, on weights that a formula gives."""

from typing import Any

import pytest
import torch

import compress
from compress.dense import Dense, network_of
from nas.cost import macs, params
from search_spaces import zoo
from search_spaces.arch import Network
from search_spaces.spaces.frames import Frame
from search_spaces.tokens import Chosen
from tests.parity.fill import image, value
from tests.parity.oracle import filled, reference, timm_model


@pytest.fixture(scope="module")
def pruned() -> tuple[dict[str, Any], Network]:
    parity = reference("asvit_deit_tiny")
    state = filled(parity)
    for number, threshold in enumerate(parity["thresholds"]):
        state[f"score_predictor.{number}.keep_threshold"] = torch.tensor(threshold)
    return parity, zoo.load_released("asvit_deit_tiny", state, locations=tuple(parity["pruning_locations"]))


def test_deit_parameters_macs_and_logits() -> None:
    parity, arch = reference("deit_tiny_patch16_224"), zoo.arch("deit_tiny_patch16_224")
    assert params(arch) == parity["params"]
    assert macs(arch) == parity["macs"]
    network = zoo.load_released("deit_tiny_patch16_224", filled(parity))
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


def test_what_nas_prune_makes_of_timms_model_gives_the_same() -> None:
    """By fixed numbers of patches, and by thresholds, as calibration and training leave them."""
    parity = reference("asvit_deit_tiny")
    arch, weights = compress.from_module(timm_model("deit_tiny_patch16_224"))
    images = image(224, parity["batch"])
    dense = Dense(arch, weights, {}, {}, images, torch.zeros(0), {}, {})
    for number, counts in enumerate(parity["kept_tokens"]):
        keeps = tuple(zip(parity["pruning_locations"], counts, strict=True))
        framed = dense.framed(Frame(arch.image_size, 192, keeps))
        with torch.no_grad():
            logits = network_of(framed.arch, framed.weights)(images[number : number + 1])
        torch.testing.assert_close(logits[0, :100], torch.tensor(parity["logits"][number]), rtol=1e-4, atol=1e-4)
    adaptive = framed.arch.keeping(adaptive=True)
    own = {
        f"blocks.{place}.threshold": torch.tensor(196 * threshold)
        for place, threshold in zip(adaptive.locations, parity["thresholds"], strict=True)
    }
    with torch.no_grad():
        logits = network_of(adaptive, {**framed.weights, **own})(images)
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


@pytest.mark.parametrize("size", ["small", pytest.param("base", marks=pytest.mark.slow)])
def test_the_larger_ones_against_timm(size: str) -> None:
    """DeiT, and AS-ViT on it, which keeps all patches where its thresholds are below all scores."""
    import timm

    theirs = timm.create_model(f"deit_{size}_patch16_224").eval()
    state = {name: value(name, tuple(weight.shape)) for name, weight in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    images = image(224, 2)
    below = {f"score_predictor.{number}.keep_threshold": torch.tensor(-1.0) for number in range(3)}
    with torch.no_grad():
        wanted = theirs(images)
        for name, given in ((f"deit_{size}_patch16_224", state), (f"asvit_deit_{size}", state | below)):
            torch.testing.assert_close(zoo.load_released(name, given)(images), wanted, rtol=1e-4, atol=1e-4)
