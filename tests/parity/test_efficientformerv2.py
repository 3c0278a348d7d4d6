"""EfficientFormerV2 against reference outputs and timm's models, from state dicts in timm's naming."""

import pytest
import torch
from timm.models.efficientformer_v2 import Downsample, EfficientFormerV2Block
from torch import nn

from nas.cost import macs, params
from search_spaces import Arch, zoo
from search_spaces.blocks import AttentionEmbed, MapAttention
from search_spaces.states import Map
from search_spaces.zoo.efficientformerv2 import _theirs
from tests.parity.fill import image, value
from tests.parity.oracle import assert_logits, filled, reference, timm_model

S0 = zoo.arch("efficientformerv2_s0")


@pytest.mark.parametrize("integers", [False, True])
def test_s0_parameters_macs_and_logits(integers: bool) -> None:
    """With counters and an index table, which older releases kept, or without."""
    parity = reference("efficientformerv2_s0")
    table = {"stages.3.blocks.3.token_mixer.attention_bias_idxs": torch.zeros(49, 49)} if integers else {}
    network = zoo.load_released("efficientformerv2_s0", filled(parity, integers) | table)
    assert network.arch == S0
    assert (params(S0), macs(S0)) == (parity["params"], parity["macs"])
    with torch.no_grad():
        logits = network(image(224, parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.parametrize("size", ["s0", "s1", "s2", "l"])
def test_every_member_agrees_with_timm(size: str) -> None:
    """In double precision: under this fill rounding grows with depth, to 5e-4 of the logits in float32."""
    name = f"efficientformerv2_{size}"
    model = timm_model(name).double()
    network = zoo.load_released(name, model.state_dict()).double()
    assert sum(weight.numel() for weight in model.parameters()) == params(zoo.arch(name))
    with torch.no_grad():
        images = image(224, 1).double()
        logits, wanted = network(images), model(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6 * float(wanted.std()))


@pytest.mark.parametrize("side", [128, 192, 256])
def test_other_sizes_agree_with_timm(side: int) -> None:
    """The size is told by the tables of biases."""
    model = timm_model("efficientformerv2_s0", img_size=side)
    network = zoo.load_released("efficientformerv2_s0", model.state_dict())
    assert network.arch == S0.at(side)
    with torch.no_grad():
        assert_logits(network(image(side, 1)), model(image(side, 1)))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 9)])
def test_blocks_on_odd_sides_agree_with_timms(height: int, width: int) -> None:
    """Which timm's networks do not get to, because their strided attention takes even sides alone."""
    sides, x = (height, width), torch.randn(2, 8, height, width)
    theirs: list[nn.Module] = [
        Downsample(8, 12, resolution=sides, use_attn=True),
        EfficientFormerV2Block(8, 3, resolution=sides),
    ]
    for model, spec, place in zip(
        theirs, (AttentionEmbed(12), MapAttention(ratio=3)), ("stages.3.downsample.", "stages.3.blocks.0."), strict=True
    ):
        state = {
            name: value(place + name, tuple(own.shape))
            for name, own in model.state_dict().items()
            if own.is_floating_point()
        }
        model.load_state_dict(state, strict=False)
        block = spec.build(Map(8, height, width))
        theirs_of = {name: _theirs(spec, name) for name in block.state_dict()}
        block.load_state_dict({name: model.state_dict()[entry] for name, entry in theirs_of.items()})
        torch.testing.assert_close(block.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_it_starts_as_timms() -> None:
    """Layer scales, position biases and norms, which are not drawn."""
    import timm

    network = zoo.load_released("efficientformerv2_s0", timm.create_model("efficientformerv2_s0").state_dict())
    fresh, model = S0.build().state_dict(), network.state_dict()
    drawn = ("conv.weight", "conv.bias", "fc1.", "fc2.", "mid.", "conv1.", "conv2.", "talking", "local.", "head")
    same = [name for name in model if not any(part in name for part in drawn)]
    assert {name.rpartition(".")[2] for name in same} >= {"gamma", "attention_biases", "running_var", "weight"}
    for name in same:
        torch.testing.assert_close(fresh[name], model[name], rtol=0, atol=0)


def test_sizes_with_odd_maps_run_on_the_same_weights() -> None:
    """At 176 pixels strided attention works on 6 of 11 places a side, and cuts off what is upsampled beyond them."""
    state = filled(reference("efficientformerv2_s0"))
    network = zoo.load_released("efficientformerv2_s0", state, image_size=176)
    sides = [state.height for spec, state in network.arch.steps() if isinstance(spec, MapAttention)]
    assert sides == [11, 11, 6, 6]
    with torch.no_grad():
        logits = network(network.arch.example(2))
    assert logits.shape == (2, 1000) and logits.isfinite().all()


def test_gradients_are_finite_everywhere_and_json_keeps_identity() -> None:
    small = S0.at(64).with_classes(3)
    assert Arch.from_json(small.to_json()) == small and Arch.from_json(S0.to_json()).id == S0.id
    network = small.build()
    network(small.example(4)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
