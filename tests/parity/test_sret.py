"""SReT-T against the authors' outputs: recursion, projections, groups and their permutation, on weights that a formula gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nas.cost import macs, macs_thop, params
from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, ClassToken, Embed, Head, Position, Stem
from search_spaces.states import Map, Tokens
from search_spaces.variants import extract_variant, recalibrate_variant, run_variant
from search_spaces.zoo.sret import UNSLICED, sret
from tests.parity.fill import image, permutation
from tests.parity.oracle import filled, reference


def test_parameters_macs_and_logits() -> None:
    parity = reference("sret_t")
    # The release draws a permutation anew in every forward; the reference took this one.
    network = zoo.load_released("sret_t", filled(parity), permutation=permutation)
    assert params(network.arch) == parity["params"]
    assert macs(network.arch) == parity["macs"]
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(parity["logits"]), rtol=1e-4, atol=1e-4)


def test_the_order_is_that_of_the_image_size() -> None:
    asked: list[int] = []

    def backwards(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.arange(count).flip(0)

    network = zoo.load_released("sret_t", filled(reference("sret_t")), image_size=160, permutation=backwards)
    orders = [order for name, order in network.state_dict().items() if name.endswith(".order")]
    assert orders and set(asked) == {20 * 20}
    assert all(torch.equal(order, torch.arange(20 * 20).flip(0)) for order in orders)


def test_what_is_no_permutation_is_refused() -> None:
    state = filled(reference("sret_t"))
    for told in (lambda n: torch.zeros(n, dtype=torch.long), lambda n: None):
        with pytest.raises(InputError, match=r"permutation\(\d+\) gives no order"):
            zoo.load_released("sret_t", state, permutation=told)


@pytest.mark.parametrize(("name", "published"), [("sret_t", 4.756), ("sret_lt", 4.988), ("sret_s", 20.900)])
def test_published_parameter_counts(name: str, published: float) -> None:
    arch = zoo.arch(name)
    assert params(arch) == pytest.approx(1e6 * published, rel=2e-4)
    assert {spec.loops for spec in arch.blocks if isinstance(spec, MB3D)} == {2}


def test_the_parts_of_the_paper() -> None:
    """Stem, position map, depthwise downsamplers, loops with projections and coefficients, groups by stage and loop; no class token."""
    arch = zoo.arch("sret_t")
    assert arch.blocks[:2] == (Stem(64, convs=3), Position()) and arch.states[2] == Map(64, 28, 28)
    downsamplers = [(spec.conv, spec.norm, spec.width) for spec in arch.blocks if isinstance(spec, Embed)]
    assert downsamplers == [("depthwise", False, 128), ("depthwise", False, 256)]
    blocks = [(spec, state) for spec, state in arch.steps() if isinstance(spec, MB3D)]
    assert {(spec.loops, spec.nll, spec.residual, spec.recursion) for spec, _ in blocks} == {
        (2, 1, "coefficients", "internal")
    }
    assert [spec.cuts for spec, _ in blocks] == [
        *[((8, "contiguous"), (2, "permuted"))] * 2,
        *[((4, "contiguous"), (1, "contiguous"))] * 5,
        *[((1, "contiguous"), (1, "contiguous"))] * 3,
    ]
    block = arch.build().blocks[2]
    scalars = [name for name, weight in block.named_parameters() if weight.numel() == 1]
    assert len(scalars) == 4 + 2 * 2, "four of the block, and two of each loop's projection"
    assert arch.blocks[-1] == Head(1000, mean_first=True, eps=1e-6)
    norms = [part for part in arch.build().modules() if isinstance(part, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6} and len(norms) == 10 * (2 + 2) + 1, "of blocks, projections and head"


def test_groups_that_weights_do_not_tell() -> None:
    """The release has weights "without slice", and of SReT-LT some with (16, 1), (14, 1), (1, 1), under names and shapes that are the same."""
    state = filled(reference("sret_t"))
    usual = zoo.load_released("sret_t", state, permutation=permutation)
    whole = zoo.load_released("sret_t", state, groups=UNSLICED)
    assert whole.arch == sret(64, 2, 3.6, 1, groups=UNSLICED) and params(whole.arch) == params(usual.arch)
    assert {spec.groups for spec in whole.arch.blocks if isinstance(spec, MB3D)} == {()}
    images = image(224, 1)
    with torch.no_grad():
        assert not torch.allclose(whole(images), usual(images), rtol=1e-2)
    other = ((16, 1), (14, 1), (1, 1))
    found = zoo.load_released("sret_t", state, groups=other, classes=5).arch
    assert [spec.cuts for spec in found.blocks if isinstance(spec, MB3D)][:3] == [
        *[((16, "contiguous"), (1, "contiguous"))] * 2,
        ((14, "contiguous"), (1, "contiguous")),
    ]


@pytest.mark.parametrize(
    ("arch", "published"),
    [
        (sret(64, 2, 3.6, 1, groups=UNSLICED), 1.4),
        (sret(126, 3, 3, 2, groups=UNSLICED), 4.7),
        (sret(64, 2, 4, 1, groups=((16, 1), (14, 1), (1, 1))), 1.2),
        (zoo.arch("sret_t"), 1.1),
        (zoo.arch("sret_lt"), 1.2),
        (zoo.arch("sret_s"), 4.2),
    ],
    ids=lambda value: str(value) if isinstance(value, float) else value.id,
)
def test_published_macs(arch: Arch, published: float) -> None:
    """As the release's table rounds them; 112 x 112 places of the stem and all."""
    assert macs(arch) / 1e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    ("name", "groups", "match"),
    [
        ("sret_t", ((1, 1), (1, 1)), "2 numbers for each of 3 stages"),
        ("sret_t", ((3, 1), (1, 1), (1, 1)), "784 tokens cannot be cut into 3 equal groups"),
        ("sret_t", ((0, 1), (1, 1), (1, 1)), "groups must be at least 1"),
        ("deit_tiny_patch16_224", UNSLICED, "is no SReT"),
    ],
)
def test_groups_that_cannot_be(name: str, groups: tuple[tuple[int, int], ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        zoo.load_released(name, filled(reference(name)), groups=groups)


def sorted_order(order: torch.Tensor) -> torch.Tensor:
    """Other tokens together than in a permuted order; where that is only turned round, groups have the same tokens."""
    return order.sort().values


def test_variants_have_the_order_that_came_with_weights() -> None:
    """Whether they run on the network's weights or have a copy, and at another size on as many tokens; with more tokens their own."""
    arch = zoo.arch("sret_t").at(64).with_classes(4)
    plain, network = arch.build().eval(), arch.build().eval()
    given = {name: sorted_order(own) if name.endswith(".order") else own for name, own in plain.state_dict().items()}
    network.load_state_dict(given)
    images = arch.example(2)
    with torch.no_grad():
        wanted = network(images)
        assert not torch.allclose(plain(images), wanted)
        assert torch.equal(run_variant(network, arch, arch, images), wanted)
        assert torch.equal(extract_variant(network, arch, arch)(images), wanted)
        near = arch.at(60)  # on 8 x 8 tokens, as at 64 pixels
        copied = extract_variant(network, arch, near)
        torch.testing.assert_close(run_variant(network, arch, near, near.example(2)), copied(near.example(2)))
        assert recalibrate_variant(network, arch, arch, [(images, torch.zeros(2))]).keys()
    orders = [(name, own) for name, own in copied.state_dict().items() if name.endswith(".order")]
    assert orders and all(torch.equal(own, given[name]) for name, own in orders)
    large = extract_variant(network, arch, arch.at(96)).state_dict()
    usual = arch.at(96).build().state_dict()
    assert all(torch.equal(large[name], own) for name, own in usual.items() if name.endswith(".order"))


@pytest.mark.parametrize(
    "spoilt",
    [lambda order: order[:-1], lambda order: torch.zeros_like(order), lambda order: order + 1],
    ids=["short", "twice", "beyond"],
)
def test_a_file_whose_order_is_none_is_refused(spoilt: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    arch = zoo.arch("sret_t").at(64).with_classes(4)
    state: dict[str, Any] = arch.build().state_dict()
    place = next(name for name in state if name.endswith(".order"))
    state[place] = spoilt(state[place]).contiguous()
    save_file(state, tmp_path / "sret.safetensors", {"arch": arch.to_json()})
    with pytest.raises(InputError, match=f"{place} is no order of tokens"):
        zoo.from_checkpoint(tmp_path / "sret.safetensors")


def test_a_permuted_network_is_deterministic_in_eval() -> None:
    """The release draws an order in every forward; ours is of the architecture, and travels with the weights."""
    arch = zoo.arch("sret_t").at(64)
    one, other = arch.build().eval(), arch.build().eval()
    other.load_state_dict(one.state_dict())
    images = arch.example(2)
    with torch.no_grad():
        logits = one(images)
        assert torch.equal(one(images), logits) and torch.equal(other(images), logits)
        moved = {name: sorted_order(own) if name.endswith(".order") else own for name, own in one.state_dict().items()}
        other.load_state_dict(moved)
        assert not torch.allclose(other(images), logits), "the order matters"


IDS = {"sret_t": "36e4accbf6bd", "sret_lt": "1dc1543fb598", "sret_s": "1518eb32b0f2"}
SWITCHES = [{"tokens": 1}, {"tokens": 2}, {"residual": "plain"}, {"residual": "layer_scale"}, {"recursion": "external"}]


@pytest.mark.parametrize("switched", SWITCHES, ids=str)
def test_switches(switched: dict[str, int | str]) -> None:
    """Class and distillation tokens, the residual form, the kind of loop: other networks, which run and learn whole."""
    usual, arch = sret(64, 2, 3.6, 1), sret(64, 2, 3.6, 1, **switched)
    assert usual == zoo.arch("sret_t") != arch == Arch.from_json(arch.to_json())
    small = arch.at(64).with_classes(3)
    assert macs(small) == macs_thop(small)
    network = small.build()
    network(small.example(2)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert sum(weight.numel() for weight in network.parameters()) == params(small)
    blocks = [spec for spec in arch.blocks if isinstance(spec, MB3D)]
    for field in switched.keys() - {"tokens"}:
        assert {getattr(spec, field) for spec in blocks} == {switched[field]}
    if switched.get("residual") == "plain":
        assert not any(weight.numel() == 1 for weight in network.parameters()), "no learned coefficient is left"


def test_external_loops_go_through_the_blocks_of_a_stage_in_turn() -> None:
    arch = sret(64, 2, 3.6, 1, recursion="external")
    stage = [(step.position, step.loop) for step in arch.schedule() if step.position in (2, 3)]
    assert stage == [(2, 0), (3, 0), (2, 1), (3, 1)]
    own = zoo.arch("sret_t").build().eval()
    turned = arch.build().eval()
    turned.load_state_dict(own.state_dict())
    images = arch.example()
    with torch.no_grad():
        assert not torch.allclose(turned(images), own(images)), "in another order, on the same weights"


@pytest.mark.parametrize("tokens", [1, 2])
def test_tokens_join_the_last_stage_and_are_classified(tokens: int) -> None:
    arch = sret(64, 2, 3.6, 1, tokens=tokens)
    place = arch.blocks.index(ClassToken(tokens))
    assert arch.states[place + 1] == Tokens(49 + tokens, 256, (7, 7), prefix=tokens)
    assert arch.blocks[-1] == Head(1000, pool="token", distilled=tokens == 2, eps=1e-6)
    network = arch.at(64).build().eval()
    images = arch.at(64).example(2)
    with torch.no_grad():
        logits = network(images)
        network.blocks[place].tokens.add_(1.0)
        assert not torch.allclose(network(images), logits)


def test_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="got tokens=3"):
        sret(64, 2, 3.6, 1, tokens=3)
    with pytest.raises(ValueError, match="cannot be divided among 3 heads"):
        sret(64, 3, 3.6, 1)


@pytest.mark.parametrize("name", ["sret_t", "sret_lt", "sret_s"])
def test_ids_are_those_of_before_the_switches(name: str) -> None:
    assert zoo.arch(name).id == IDS[name]
