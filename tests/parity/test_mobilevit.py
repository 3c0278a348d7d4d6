"""MobileViT against reference outputs and timm's models, from state dicts in timm's naming and in the authors'."""

import re

import pytest
import timm
import torch
from torch import Tensor

from nas.cost import macs, params
from search_spaces import zoo
from search_spaces.blocks import MobileViT
from search_spaces.states import Map
from search_spaces.variants import run_variant
from search_spaces.zoo.mobilevit import _timm
from tests.parity.fill import image
from tests.parity.oracle import assert_logits, filled, reference, timm_model

PUBLISHED = {"xxs": (1.272, 0.407), "xs": (2.318, 1.026), "s": (5.578, 2.001)}
"""Millions of parameters; 10^9 multiply-accumulates of convolutions, linear layers and matmuls at 256 pixels."""
SCALES = (160, 192, 256, 288, 320)  # of the multi-scale sampler; at 160 and 288 the last map has odd sides
RENAMED = (  # from timm's naming to that of the authors' release
    (r"^stem\.bn", "conv_1.block.norm"),
    (r"^stem", "conv_1.block"),
    (r"^final_conv\.bn", "conv_1x1_exp.block.norm"),
    (r"^final_conv", "conv_1x1_exp.block"),
    (r"^head\.fc", "classifier.fc"),
    (r"^stages\.(\d)", lambda found: f"layer_{int(found[1]) + 1}"),
    (r"\.bn\.", ".norm."),
    (r"conv1_1x1\.", "block.exp_1x1.block."),
    (r"conv2_kxk\.", "block.conv_3x3.block."),
    (r"conv3_1x1\.", "block.red_1x1.block."),
    (r"conv_kxk\.", "local_rep.conv_3x3.block."),
    (r"conv_1x1\.", "local_rep.conv_1x1.block.conv."),
    (r"conv_proj\.", "conv_proj.block."),
    (r"conv_fusion\.", "fusion.block."),
    (r"transformer\.(\d)\.norm1", r"global_rep.\1.pre_norm_mha.0"),
    (r"transformer\.(\d)\.attn\.qkv", r"global_rep.\1.pre_norm_mha.1.qkv_proj"),
    (r"transformer\.(\d)\.attn\.proj", r"global_rep.\1.pre_norm_mha.1.out_proj"),
    (r"transformer\.(\d)\.norm2", r"global_rep.\1.pre_norm_ffn.0"),
    (r"transformer\.(\d)\.mlp\.fc1", r"global_rep.\1.pre_norm_ffn.1"),
    (r"transformer\.(\d)\.mlp\.fc2", r"global_rep.\1.pre_norm_ffn.4"),
    (r"layer_3\.1\.norm", "layer_3.1.global_rep.2"),
    (r"layer_4\.1\.norm", "layer_4.1.global_rep.4"),
    (r"layer_5\.1\.norm", "layer_5.1.global_rep.3"),
)


def by_the_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's in the naming of the authors' release."""
    found = {}
    for name, tensor in state.items():
        for pattern, theirs in RENAMED:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("authors", [False, True])
def test_xxs_parameters_macs_and_logits(authors: bool, integers: bool) -> None:
    parity, arch = reference("mobilevit_xxs"), zoo.arch("mobilevit_xxs")
    state = filled(parity, integers)
    network = zoo.load_released("mobilevit_xxs", by_the_authors(state) if authors else state)
    assert network.arch == arch
    assert (params(arch), macs(arch)) == (parity["params"], parity["macs"])
    with torch.no_grad():
        logits = network(image(256, parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


def test_the_authors_names_are_those_of_the_release() -> None:
    names = by_the_authors(filled(reference("mobilevit_xxs"), integers=True)).keys()
    assert names > {
        "conv_1.block.norm.running_mean",
        "layer_1.0.block.exp_1x1.block.conv.weight",
        "layer_3.1.local_rep.conv_1x1.block.conv.weight",
        "layer_4.1.global_rep.3.pre_norm_mha.1.qkv_proj.bias",
        "layer_5.1.global_rep.3.weight",
        "layer_5.1.fusion.block.norm.num_batches_tracked",
        "conv_1x1_exp.block.conv.weight",
        "classifier.fc.bias",
    }


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_member_agrees_with_timm_on_random_weights(size: str) -> None:
    """As timm draws them, but with BN statistics of their own."""
    name = f"mobilevit_{size}"
    torch.manual_seed(0)
    model = timm.create_model(name)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 128, 128))  # statistics
        network, images = zoo.load_released(name, model.state_dict()), torch.rand(2, 3, 256, 256)
        assert_logits(network(images), model.eval()(images))
    counted = sum(weight.numel() for weight in model.parameters())
    millions, billions = PUBLISHED[size]
    assert params(network.arch) == counted == pytest.approx(1e6 * millions, rel=1e-3)
    assert macs(network.arch) == pytest.approx(1e9 * billions, rel=1e-3)


@pytest.mark.parametrize("side", SCALES)
def test_the_sides_of_the_multi_scale_sampler(side: int) -> None:
    """Also those at which a map has odd sides, which is resized for its transformer."""
    model = timm_model("mobilevit_xxs")
    network = zoo.load_released("mobilevit_xxs", model.state_dict())
    variant = network.arch.at(side)
    odd = [max(state.height, state.width) for spec, state in variant.steps() if isinstance(spec, MobileViT)][-1] % 2
    assert odd == (side in (160, 288))
    with torch.no_grad():
        assert_logits(run_variant(network, network.arch, variant, image(side, 2)), model(image(side, 2)))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 9), (6, 4)])
def test_a_block_agrees_with_timms_on_any_sides(height: int, width: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("mobilevit_xxs").stages[3][1].eval()
    block = MobileViT(80, 4).build(Map(64, height, width)).eval()
    state = theirs.state_dict()
    own = {name: state[_timm(name)] for name in block.state_dict()}
    by_head = {  # q, k and v of a head together
        name: tensor.unflatten(0, (3, 4, 20)).transpose(0, 1).flatten(0, 2) if ".qkv." in name else tensor
        for name, tensor in own.items()
    }
    block.load_state_dict(by_head)
    x = torch.randn(2, 64, height, width)
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-5)
