"""EfficientFormer against the authors' outputs and timm's models, from state dicts in both their namings."""

import pytest
import torch

from search_spaces import InputError, zoo
from search_spaces.zoo.efficientformer import released
from tests.parity.fill import image
from tests.parity.oracle import assert_logits, entries, network_with, reference, timm_model


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l1_authors"])
def test_l1_in_either_naming(name: str, integers: bool) -> None:
    """With counters and index tables or without."""
    parity, arch = reference(name), zoo.arch("efficientformer_l1")
    assert sum(spec.params(state) for spec, state in arch.steps()) == parity["params"]
    assert sum(spec.macs(state) for spec, state in arch.steps()) == parity["macs"]
    state = released(entries(parity, integers), arch)
    assert not any(entry.endswith("idxs") for entry in state)
    with torch.no_grad():
        logits = network_with(arch, state)(image(parity["image_size"], parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.slow
def test_l7() -> None:
    """Whose last stage is tokens from its start; timm's model on the same weights too."""
    parity, arch = reference("efficientformer_l7"), zoo.arch("efficientformer_l7")
    assert sum(spec.params(state) for spec, state in arch.steps()) == parity["params"]
    assert sum(spec.macs(state) for spec, state in arch.steps()) == parity["macs"]
    images, model = image(parity["image_size"], parity["batch"]), timm_model("efficientformer_l7")
    with torch.no_grad():
        logits = network_with(arch, released(model.state_dict(), arch))(images)
        assert_logits(logits, model(images))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l3"])
def test_every_member_agrees_with_timm(name: str) -> None:
    arch, model = zoo.arch(name), timm_model(name)
    assert sum(weight.numel() for weight in model.parameters()) == sum(spec.params(at) for spec, at in arch.steps())
    with torch.no_grad():
        logits = network_with(arch, released(model.state_dict(), arch))(image(224, 1))
        assert_logits(logits, model(image(224, 1)))


@pytest.mark.parametrize(
    "entry",
    [
        "network.6.3.mlp.fc1.weight",  # where the map becomes tokens
        "network.7.proj.weight",
        "stages.0.blocks.3.ls1.gamma",
        "stages.0.blocks.0.token_mixer.attention_bias_idxs",
        "stages.0.blocks.0.mlp.fc3.weight",
        "stem.conv3.weight",
        "weight",
    ],
)
def test_an_entry_of_another_network_is_refused(entry: str) -> None:
    message = f"^{entry} has no place in network {zoo.arch('efficientformer_l1').id}; give the state dict of this very"
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        released({entry: torch.ones(1)}, zoo.arch("efficientformer_l1"))
