"""What every published network promises, for every name of the zoo."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress import exit_loss
from nas.cascade.files import check_exits, export_exits
from nas.cost import macs, macs_fvcore, macs_thop, params
from nas.export import check_file, export_onnx
from nas.target import Target
from nas.train.retrain import fresh_network
from search_spaces import Arch, zoo
from search_spaces.blocks import MB3D
from search_spaces.cascade import Cascade, CascadeNetwork, linked
from search_spaces.zoo.loading import OF
from search_spaces.zoo.released import places

SIDE = 64  # pixels, where a network of any size runs in a moment
ONE_OF_EACH = [
    "efficientformer_l1",
    "efficientformerv2_s0",
    "sret_t",
    "deit_tiny_patch16_224",
    "asvit_deit_tiny",
    "mobilevit_xxs",
    "mobile_former_26m",
    "mobile_former_96m",
]


def runnable(arch: Arch) -> Arch:
    """The network on small images."""
    return arch.at(SIDE)


@pytest.mark.parametrize("name", zoo.names())
def test_json_and_closed_forms(name: str) -> None:
    arch = zoo.arch(name)
    assert Arch.from_json(arch.to_json()) == arch
    with torch.device("meta"):
        assert params(arch) == sum(weight.numel() for weight in arch.build().parameters())
    small = runnable(arch)
    assert macs(small) == macs_thop(small)
    # The class token's weights are computed once more where a fused kernel keeps them to itself.
    assert macs_fvcore(small) == pytest.approx(macs(small), rel=1e-3 if small.locations else 0)


@pytest.mark.parametrize("name", zoo.names())
def test_every_weight_has_one_place_in_a_release(name: str) -> None:
    """Each naming fills every row of every weight."""
    arch = zoo.arch(name)
    for naming in OF[name].namings(arch):
        filled: dict[str, set[int]] = {}
        for entry in naming.values():
            rows = entry.rows or (0, places(arch)[entry.place][0] if places(arch)[entry.place] else 1)
            filled.setdefault(entry.place, set()).update(range(*rows))
        assert {place: len(rows) for place, rows in filled.items()} == {
            place: shape[0] if shape else 1 for place, shape in places(arch).items()
        }


@pytest.mark.parametrize("name", zoo.names())
def test_gradients_are_finite_and_reach_every_weight(name: str) -> None:
    network = fresh_network(runnable(zoo.arch(name)), 0).train()
    generator = torch.Generator().manual_seed(0)
    logits = network(torch.randn(2, 3, SIDE, SIDE, generator=generator))
    exit_loss(logits if isinstance(logits, list) else [logits], torch.tensor([1, 2])).backward()
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for weight, parameter in learned.items():
        assert parameter.grad is not None, weight
        assert torch.isfinite(parameter.grad).all(), weight


def far_from_fresh(network: nn.Module) -> nn.Module:
    """The network with the statistics of its BN from random images, so that these are seen in its logits: behind fresh ones little of them is left."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean
    with torch.no_grad():
        network.train()(torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    return network.eval()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_exported_file_agrees(name: str, tmp_path: Path) -> None:
    arch = runnable(zoo.arch(name))
    network = far_from_fresh(fresh_network(arch, 0))
    path = export_onnx(network, arch.example(), tmp_path / "network.onnx")
    images = torch.cat([arch.example(seed=seed) for seed in range(8)])
    checked = check_file(path, network, images, Target.parse("cpu-ort-fp32-b1-t1"))
    with torch.no_grad():
        logits = network(images)
    assert checked.max_abs_diff <= 1e-4 * max(1.0, float(logits.abs().max()))
    assert float(logits.std(0).max()) > 1e-2 * float(logits.abs().max()), "images tell logits apart"
    assert checked.top1_agreement == 1


@pytest.mark.slow
def test_exported_exits_agree(tmp_path: Path) -> None:
    """Of T2T-ViT's way in, with a block behind it in each stage, and weights far from fresh ones: of those a lost epsilon does not show."""
    arch = zoo.arch("dvt_t2t_vit_12")
    assert isinstance(arch, Cascade)
    block = next(spec for spec in arch.blocks if isinstance(spec, MB3D))
    stages = [replace(stage, blocks=(*stage.blocks[:3], block, stage.blocks[-1])) for stage in arch.stages]
    network = fresh_network(linked(stages).at(SIDE), 0).eval()
    assert isinstance(network, CascadeNetwork)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    paths = export_exits(network, 1, tmp_path)
    images = network.arch.example(seed=1)
    with torch.no_grad():
        wanted = network(images)
    target = Target.parse("cpu-ort-fp32-b1-t1")
    for checked, logits in zip(check_exits(network, paths, images, target), wanted, strict=True):
        assert checked.max_abs_diff <= 1e-5 * float(logits.abs().max())
