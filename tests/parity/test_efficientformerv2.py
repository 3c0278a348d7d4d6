"""EfficientFormerV2 against reference outputs and timm's models, from state dicts in timm's naming."""

import pytest
import torch
from timm.models.efficientformer_v2 import Downsample, EfficientFormerV2Block
from torch import nn

from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import AttentionEmbed, MapAttention
from search_spaces.states import Map
from search_spaces.variants import extract_variant
from search_spaces.zoo.efficientformerv2 import _ours, released
from tests.parity.fill import image, value
from tests.parity.oracle import assert_logits, entries, network_with, reference, timm_model

S0 = zoo.arch("efficientformerv2_s0")


@pytest.mark.parametrize("integers", [False, True])
def test_s0_parameters_macs_and_logits(integers: bool) -> None:
    """With counters and an index table, which older releases kept, or without."""
    parity = reference("efficientformerv2_s0")
    assert sum(spec.params(state) for spec, state in S0.steps()) == parity["params"]
    assert sum(spec.macs(state) for spec, state in S0.steps()) == parity["macs"]
    table = {"stages.3.blocks.3.token_mixer.attention_bias_idxs": torch.zeros(49, 49)} if integers else {}
    state = released(entries(parity, integers) | table, S0)
    assert len(state) == len(parity["state"]) - (0 if integers else len(parity["integer_entries"]))
    with torch.no_grad():
        logits = network_with(S0, state)(image(224, parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


@pytest.mark.parametrize("size", ["s0", "s1", "s2", "l"])
def test_every_member_agrees_with_timm(size: str) -> None:
    """In double precision: under this fill rounding grows with depth, to 5e-4 of the logits in float32."""
    name = f"efficientformerv2_{size}"
    arch, model = zoo.arch(name), timm_model(name).double()
    assert sum(weight.numel() for weight in model.parameters()) == sum(spec.params(at) for spec, at in arch.steps())
    with torch.no_grad():
        images = image(224, 1).double()
        logits, wanted = network_with(arch, released(model.state_dict(), arch)).double()(images), model(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6 * float(wanted.std()))


@pytest.mark.parametrize("side", [128, 192, 256])
def test_other_sizes_agree_with_timm(side: int) -> None:
    model = timm_model("efficientformerv2_s0", img_size=side)
    network = network_with(S0.at(side), released(model.state_dict(), S0.at(side)))
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
        block.load_state_dict(
            {_ours(place + name).removeprefix(place): own for name, own in model.state_dict().items()}
        )
        torch.testing.assert_close(block.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_it_starts_as_timms() -> None:
    """Layer scales, position biases and norms, which are not drawn."""
    fresh, model = S0.build().state_dict(), released(timm_fresh(), S0)
    drawn = ("conv.weight", "conv.bias", "fc1.", "fc2.", "mid.", "conv1.", "conv2.", "talking", "local.", "head")
    same = [name for name in model if not any(part in name for part in drawn)]
    assert {name.rpartition(".")[2] for name in same} >= {"gamma", "attention_biases", "running_var", "weight"}
    for name in same:
        torch.testing.assert_close(fresh[name], model[name], rtol=0, atol=0)


def timm_fresh() -> dict[str, torch.Tensor]:
    import timm

    return dict(timm.create_model("efficientformerv2_s0", pretrained=False).state_dict())


def test_sizes_with_odd_maps_run_on_the_same_weights() -> None:
    """At 176 pixels strided attention works on 6 of 11 places a side, and cuts off what is upsampled beyond them."""
    network = network_with(S0, released(entries(reference("efficientformerv2_s0")), S0))
    odd = S0.at(176)
    assert [state.height for spec, state in odd.steps() if isinstance(spec, MapAttention)] == [11, 11, 6, 6]
    with torch.no_grad():
        logits = extract_variant(network, S0, odd)(odd.example(2))
    assert logits.shape == (2, 1000) and logits.isfinite().all()


def test_gradients_are_finite_everywhere_and_json_keeps_identity() -> None:
    small = S0.at(64).with_classes(3)
    assert Arch.from_json(small.to_json()) == small and Arch.from_json(S0.to_json()).id == S0.id
    network = small.build()
    network(small.example(4)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_an_entry_of_another_network_is_refused() -> None:
    s1 = zoo.arch("efficientformerv2_s1")
    names = {name for name in reference("efficientformerv2_s0")["state"] if name.startswith("stages.2.blocks.5")}
    assert "stages.2.blocks.5.token_mixer.stride_conv.conv.weight" in names
    with pytest.raises(InputError, match=rf"^stages\.2\.blocks\.5\.token_mixer\S* has no place in network {s1.id};"):
        released({name: torch.ones(1) for name in sorted(names, reverse=True)}, s1)
    with pytest.raises(InputError, match=r"^stages\.3\.blocks\.0\.ls1\.gamma has no place"):
        released({"stages.3.blocks.0.ls1.gamma": torch.ones(176)}, S0)
