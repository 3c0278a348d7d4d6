"""EfficientFormer against the authors' outputs and timm's models, from state dicts in both their namings."""

import pytest
import torch

from nas.cost import macs, params
from search_spaces import zoo
from tests.parity.fill import image
from tests.parity.oracle import assert_logits, filled, reference, timm_model


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l1_authors"])
def test_l1_in_either_naming(name: str, integers: bool) -> None:
    """With counters and index tables or without."""
    parity = reference(name)
    network = zoo.load_released("efficientformer_l1", filled(parity, integers))
    assert network.arch == zoo.arch("efficientformer_l1")
    assert params(network.arch) == sum(weight.numel() for weight in network.parameters()) == parity["params"]
    assert macs(network.arch) == parity["macs"]
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.slow
def test_l7() -> None:
    """Whose last stage is tokens from its start; timm's model on the same weights too."""
    parity, model = reference("efficientformer_l7"), timm_model("efficientformer_l7")
    network, images = zoo.load_released("efficientformer_l7", model.state_dict()), image(224, parity["batch"])
    assert (params(network.arch), macs(network.arch)) == (parity["params"], parity["macs"])
    with torch.no_grad():
        logits = network(images)
        assert_logits(logits, model(images))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.parametrize("name", ["efficientformer_l1", pytest.param("efficientformer_l3", marks=pytest.mark.slow)])
def test_every_member_agrees_with_timm(name: str) -> None:
    model = timm_model(name)
    network = zoo.load_released(name, model.state_dict())
    assert sum(weight.numel() for weight in model.parameters()) == params(network.arch)
    with torch.no_grad():
        assert_logits(network(image(224, 1)), model(image(224, 1)))
