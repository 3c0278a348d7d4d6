"""One network at other sizes and with fewer loops: what it is, its weights, its gradients, its BN statistics."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, MB4D, ClassToken, Embed, Head, Patch, Position, Stem, TokenPrune
from search_spaces.regrid import map_places, offsets, token_places
from search_spaces.variants import (
    check_sides,
    extract_variant,
    most_loops,
    recalibrate_variant,
    run_variant,
    variant_state,
    variant_weights,
)

DEEP = MB3D(
    2, 4, 8, loops=3, nll=1, residual="coefficients", groups=(1, 4, 2), orders=("contiguous", "strided", "permuted")
)
LATER = MB3D(2, 4, 8, loops=2, layer_scale=0.5)
ARCH = Arch(32, 3, (Stem(8), Position(), MB4D(1), replace(DEEP, seed=5), Embed(12, "separable"), LATER, Head(5)))
VARIANTS = [ARCH, ARCH.at(64), ARCH.with_loops(2), ARCH.with_loops(1), ARCH.at(48).with_loops(1)]


@pytest.fixture
def network() -> nn.Module:
    """With weights of which none is 0 and BN statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    network = ARCH.build()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    network(ARCH.example(4, seed=1))
    return network


def test_fewer_loops_leave_canonical_blocks() -> None:
    """What no loop needs any more is at its default, or equal networks would have different ids."""
    assert replace(DEEP, seed=5).shallower(2) == replace(
        DEEP, loops=2, groups=(1, 4), orders=("contiguous", "strided"), seed=0
    )
    assert DEEP.shallower(1) == replace(DEEP, loops=1, groups=(), orders=())
    moved = MB3D(2, 4, 8, loops=2, groups=(2, 2), orders=("contiguous", "permuted"), inverse=False, seed=3)
    assert moved.shallower(1) == MB3D(2, 4, 8, groups=(2,), orders=("contiguous",))
    assert moved.shallower(2) == moved.shallower(3) == moved
    assert MB4D(2).shallower(1) == MB4D(2)
    around = MB3D(2, 4, 8, loops=3, recursion="external")
    assert around.shallower(2) == replace(around, loops=2) and around.shallower(1) == MB3D(2, 4, 8)


def test_an_arch_at_another_size_or_depth() -> None:
    assert ARCH.at(32) == ARCH and ARCH.at(64).at(32) == ARCH
    assert ARCH.at(64).image_size == 64 and ARCH.at(64).blocks == ARCH.blocks
    assert [most_loops(arch) for arch in VARIANTS] == [3, 3, 2, 1, 1]
    assert ARCH.with_loops(3) == ARCH.with_loops(9) == ARCH
    assert [spec.loops for spec in ARCH.with_loops(2).blocks if isinstance(spec, MB3D)] == [2, 2]
    assert most_loops(zoo.arch("sret_t")) == 2 and most_loops(zoo.arch("efficientformer_l1")) == 1
    with pytest.raises(ValueError, match="at least once, got 0 loops"):
        ARCH.with_loops(0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_as_the_variant_with_its_weights(network: nn.Module, variant: Arch, training: bool) -> None:
    images = variant.example(3)
    alone = variant.build()
    alone.load_state_dict(variant_state(network.state_dict(), ARCH, variant))
    network.train(training)
    alone.train(training)
    expected = alone(images)
    torch.testing.assert_close(run_variant(network, ARCH, variant, images), expected)
    own, other = dict(network.named_buffers()), dict(alone.named_buffers())
    moments = [
        name for name in own if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert moments
    for name in moments:
        torch.testing.assert_close(own[name], other[name])
    if variant == ARCH:
        torch.testing.assert_close(network.eval()(images), alone.eval()(images))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_networks_own_parameters(network: nn.Module, variant: Arch) -> None:
    run_variant(network, ARCH, variant, variant.example(2)).square().sum().backward()
    used = {name for name, _ in variant.build().named_parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in used), name
    assert {name for name, _ in network.named_parameters()} - used == {
        f"blocks.3.nll.{loop}.{name}"
        for loop in range(3)
        if loop >= variant.blocks[3].loops
        for name, _ in network.blocks[3].nll[0].named_parameters()
    }


def test_a_vit_with_class_token_and_pruning_has_variants() -> None:
    """The class token's row is copied; the position biases behind a pruning location are those of the whole grid."""
    block = MB3D(2, 4, 8, bias=False)
    vit = Arch(32, 3, (Patch(8, 8), ClassToken(), Position(), block, TokenPrune(9), block, Head(5)))
    network = vit.build().eval()
    weights = variant_weights(network.state_dict(), vit, vit.at(64))
    table = network.blocks[2].table
    assert torch.equal(weights["blocks.2.table"], token_places(table, (4, 4), (8, 8), prefix=1))
    biased = Arch(32, 3, (Patch(8, 8), MB3D(2, 4, 8), TokenPrune(9), MB3D(2, 4, 8, loops=2), Head(5)))
    for arch, variant in ((vit, vit.at(64)), (biased, biased.at(64)), (biased, biased.with_loops(1).at(48))):
        network, images = arch.build().eval(), variant.example(3)
        alone = extract_variant(network, arch, variant)
        torch.testing.assert_close(run_variant(network, arch, variant, images), alone(images))
    check_sides(vit, (16,))  # where 2 of 4 patches are kept
    with pytest.raises(InputError, match="cannot be cut into patches of 8"):
        check_sides(vit, (12,))


def test_tables_of_sines_are_those_of_the_variants_own_size() -> None:
    vit = Arch(32, 3, (Patch(8, 8), ClassToken(), Position("sines"), MB3D(2, 4, 8, bias=False), Head(5)))
    large, state = vit.at(64).build(), variant_state(vit.build().state_dict(), vit, vit.at(64))
    assert state.keys() == large.state_dict().keys()
    assert torch.equal(state["blocks.2.table"], large.blocks[2].table)
    state["blocks.2.table"].zero_()  # no other network has it
    assert variant_state(vit.build().state_dict(), vit, vit.at(64))["blocks.2.table"].any()


def test_an_external_loop_of_fewer_passes_is_the_network_with_fewer() -> None:
    around = MB3D(2, 4, 8, loops=3, nll=1, recursion="external", layer_scale=0.5)
    arch = Arch(16, 3, (Stem(8), around, around, Head(5)))
    network = arch.build().eval()
    first, second = network.blocks[1:3]
    for loops in (1, 2, 3):
        images = arch.example(2)
        x = network.blocks[0](images)
        for loop in range(loops):
            x = second(first(x, loop), loop)
        found = run_variant(network, arch, arch.with_loops(loops), images)
        torch.testing.assert_close(found, network.blocks[3](x))


def test_weights_are_the_very_tensors_but_those_of_a_grid(network: nn.Module) -> None:
    state, variant = network.state_dict(), ARCH.at(64)
    weights = variant_weights(state, ARCH, variant)
    tables = {"blocks.1.table", "blocks.3.token_mixer.attention_biases", "blocks.5.token_mixer.attention_biases"}
    assert {name for name, tensor in weights.items() if tensor is not state[name]} == tables
    assert torch.equal(weights["blocks.1.table"], map_places(state["blocks.1.table"], (16, 16)))
    name = "blocks.5.token_mixer.attention_biases"
    assert torch.equal(weights[name], offsets(state[name], (4, 4), (8, 8)))
    assert any(name.endswith("order") for name in state) and not any(name.endswith("order") for name in weights)


def test_nothing_is_kept_between_calls(network: nn.Module) -> None:
    network.eval()
    images, larger = ARCH.example(2), ARCH.at(64).example(2)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        first = run_variant(network, ARCH, ARCH.with_loops(2), images)
        recalibrate_variant(network, ARCH, ARCH.with_loops(2), [(images, torch.zeros(2))])
        run_variant(network, ARCH, ARCH.at(64), larger)
        assert torch.equal(run_variant(network, ARCH, ARCH.with_loops(2), images), first)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_recalibration_leaves_the_momentum_of_training_alone(network: nn.Module) -> None:
    """The statistics of a network that is trained move by a tenth, also after others were averaged."""
    images = ARCH.example(4, seed=2)
    before = network.blocks[0].norm1.running_mean.clone()
    recalibrate_variant(network, ARCH, ARCH, [(images, torch.zeros(4))])
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate_variant(network, ARCH, ARCH, [])
    with pytest.raises(RuntimeError):
        recalibrate_variant(network, ARCH, ARCH, [(images[:, :2], torch.zeros(4))])
    run_variant(network, ARCH, ARCH, images)
    mean = network.blocks[0].conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(network.blocks[0].norm1.running_mean, 0.9 * before + 0.1 * mean)


def test_bn_behind_a_loop_has_statistics_of_each_depth(network: nn.Module) -> None:
    images, labels = ARCH.example(6), torch.zeros(6)
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    whole, shallow = (recalibrate_variant(network, ARCH, ARCH.with_loops(loops), batches) for loops in (3, 1))
    assert whole.keys() == shallow.keys() and len(whole) > 6
    for name, tensor in whole.items():
        behind = name.startswith("blocks.4.") and not name.endswith("num_batches_tracked")
        assert torch.equal(tensor, shallow[name]) != behind, name
    alone = extract_variant(network, ARCH, ARCH.with_loops(1), shallow)
    assert not alone.training and alone.state_dict()["blocks.4.norm.running_mean"].equal(
        shallow["blocks.4.norm.running_mean"]
    )
    kept = extract_variant(network, ARCH, ARCH.with_loops(1)).state_dict()
    assert kept["blocks.4.norm.running_mean"].equal(network.state_dict()["blocks.4.norm.running_mean"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Arch(32, 3, (Stem(8), MB4D(1), Head(5))), "other kinds of blocks"),
        (ARCH.with_classes(6), r"blocks.6.head.weight of network .* is \(6, 12\), that of .* \(5, 12\)"),
        (replace(ARCH, blocks=(Stem(12), *ARCH.blocks[1:])), "blocks.0.conv1.weight of network"),
        (
            replace(ARCH, blocks=(*ARCH.blocks[:5], replace(LATER, nll=1), ARCH.blocks[6])),
            "needs the weight blocks.5.nll.0.norm.weight",
        ),
    ],
)
def test_what_is_no_variant_is_refused(network: nn.Module, other: Arch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variant_weights(network.state_dict(), ARCH, other)


def test_sizes_at_which_a_network_cannot_be_name_the_block() -> None:
    check_sides(ARCH, (16, 32, 48, 64))
    message = r"cannot take images of 20 pixels: block 3 .mb3d.: 25 tokens cannot be cut into 4 equal groups"
    with pytest.raises(InputError, match=message):
        check_sides(ARCH, (32, 20))
    with pytest.raises(InputError, match="image_size and channels must be at least 1"):
        check_sides(ARCH, (0,))
