"""EfficientFormer against the authors' outputs, and against timm: parameters, MACs and logits on weights that a formula gives."""

import pytest
import torch

from nas.cost import macs, params
from search_spaces import zoo
from tests.parity.fill import image, value
from tests.parity.reference import filled, reference


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l1_authors", "efficientformer_l7"])
def test_parameters_macs_and_logits(name: str) -> None:
    parity, published = reference(name), name.removesuffix("_authors")
    network = zoo.load_released(published, filled(parity))
    assert network.arch == zoo.arch(published)
    assert params(network.arch) == sum(weight.numel() for weight in network.parameters()) == parity["params"]
    assert macs(network.arch) == parity["macs"]
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(parity["logits"]), rtol=1e-4, atol=2e-5)


def test_index_tables_and_counters_may_be_there() -> None:
    parity = reference("efficientformer_l1_authors")
    state = filled(parity)
    more = {name: torch.zeros(parity["state"][name], dtype=torch.long) for name in parity["integer_entries"]}
    network, full = (zoo.load_released("efficientformer_l1", given) for given in (state, state | more))
    for own, other in zip(network.state_dict().values(), full.state_dict().values(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.slow
def test_l3_against_timm() -> None:
    import timm

    theirs = timm.create_model("efficientformer_l3").eval()
    state = {name: value(name, tuple(v.shape)) for name, v in theirs.state_dict().items() if v.is_floating_point()}
    theirs.load_state_dict(state, strict=False)
    network, images = zoo.load_released("efficientformer_l3", state), image(224, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=1e-4, atol=1e-5)
