"""SReT-T against the authors' outputs: recursion, projections, groups and their permutation, on weights that a formula gives."""

import pytest
import torch

from nas.cost import macs, macs_thop, params
from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, ClassToken, Embed, Head, Position, Stem
from search_spaces.states import Map, Tokens
from search_spaces.zoo.sret import sret
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
    with pytest.raises(InputError, match=r"permutation\(\d+\) gives no order"):
        zoo.load_released("sret_t", state, permutation=lambda n: torch.zeros(n, dtype=torch.long))


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
    assert arch.blocks[-1] == Head(1000, mean_first=True)


def test_a_permuted_network_is_deterministic_in_eval() -> None:
    """The release draws an order in every forward; ours is of the architecture, and travels with the weights."""
    arch = zoo.arch("sret_t").at(64)
    one, other = arch.build().eval(), arch.build().eval()
    other.load_state_dict(one.state_dict())
    images = arch.example(2)
    with torch.no_grad():
        logits = one(images)
        assert torch.equal(one(images), logits) and torch.equal(other(images), logits)
        moved = {name: order.flip(0) if name.endswith(".order") else order for name, order in one.state_dict().items()}
        other.load_state_dict(moved)
        assert not torch.allclose(other(images), logits), "the order matters"


IDS = {"sret_t": "30fd1f5859b2", "sret_lt": "d89f9701718f", "sret_s": "6cf0b9c26959"}
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
    assert arch.blocks[-1] == Head(1000, pool="token", distilled=tokens == 2)
    network = arch.at(64).build().eval()
    images = arch.at(64).example(2)
    with torch.no_grad():
        logits = network(images)
        network.blocks[place].tokens.add_(1.0)
        assert not torch.allclose(network(images), logits)


def test_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="got tokens=3"):
        sret(64, 2, 3.6, 1, tokens=3)


@pytest.mark.parametrize("name", ["sret_t", "sret_lt", "sret_s"])
def test_ids_are_those_of_before_the_switches(name: str) -> None:
    assert zoo.arch(name).id == IDS[name]
