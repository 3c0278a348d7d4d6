"""Prepacked linear layers: the same scores, and the network itself left alone."""

import pytest
import torch
from torch import nn

from search_spaces import Arch, zoo
from search_spaces.arch import Network
from search_spaces.blocks import MB3D, Head, Patch
from search_spaces.blocks.residual import MLPS
from search_spaces.prepack import PrepackedLinear, prepack

NAMES = ("deit_tiny_patch16_224", "asvit_deit_tiny", "efficientformer_l1", "sret_t", "mobilevit_xxs")


def network(name: str) -> Network:
    torch.manual_seed(0)
    return zoo.arch(name).build().eval()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_same(name: str) -> None:
    own = network(name)
    images = own.arch.example(3)
    with torch.no_grad():
        expected, found = own(images), prepack(own)(images)
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("form", MLPS)
def test_what_stands_between_the_layers_of_an_mlp_stays(form: str) -> None:
    torch.manual_seed(0)
    block = MB3D(2, 8, 8, residual="plain", bias=False, mlp=form)
    own = Arch(32, 3, (Patch(16, 8), block, Head(3))).build().eval()
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
        images = own.arch.example(2)
        torch.testing.assert_close(prepack(own)(images), own(images))


def test_every_linear_layer_is_prepacked_in_the_copy_alone() -> None:
    own = network("deit_tiny_patch16_224").train()
    before = {name: weight.clone() for name, weight in own.state_dict().items()}
    packed = prepack(own)
    assert not [module for module in packed.modules() if isinstance(module, nn.Linear)]
    assert sum(isinstance(module, PrepackedLinear) for module in packed.modules()) == 12 * 4 + 1
    assert not packed.training
    assert own.training
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in own.state_dict().items())


def test_other_types_stay_as_they_are() -> None:
    packed = prepack(network("deit_tiny_patch16_224").double())
    assert not [module for module in packed.modules() if isinstance(module, PrepackedLinear)]
