"""Costs over kept tokens, against the closed form of the network with exactly so many."""

import pytest
import torch

from compress import curve_of
from search_spaces import Arch, zoo
from search_spaces.blocks import BlockSpec, ClassToken, Head
from search_spaces.states import State
from search_spaces.zoo.vit import vit as vit_of_the_zoo
from tests.search_spaces.test_token_prune import hybrid, vit


def macs(spec: BlockSpec, state: State) -> float:
    return spec.macs(state)


def whole(arch: Arch) -> int:
    return sum(spec.macs(state) for spec, state in arch.steps())


@pytest.mark.parametrize("arch", [hybrid((40, 20), False), vit((40, 20), True)])
def test_the_curve_is_the_cost_of_the_network_that_keeps_so_many(arch: Arch) -> None:
    curve = curve_of(arch, macs, range(1, 65))
    counts = [torch.tensor([40.0, 64.0, 7.0]), torch.tensor([20.0, 33.0, 1.0])]
    wanted = [whole(arch.keeping((int(a), int(b)))) for a, b in zip(*counts, strict=True)]
    torch.testing.assert_close(curve(counts), torch.tensor(wanted, dtype=torch.float32))


def body(spec: BlockSpec, state: State) -> float:
    """What AS-ViT's paper counts: all but the head."""
    return 0 if isinstance(spec, Head) else spec.macs(state)


@pytest.mark.parametrize(("heads", "billions"), [(3, 1.2464), (6, 4.5736), (12, 17.4709)])
def test_dense_costs_are_the_published_ones(heads: int, billions: float) -> None:
    """The paper's F_dense is of a network without class token, n = 196."""
    blocks = [spec for spec in vit_of_the_zoo(heads, (4, 7, 10)).blocks if not isinstance(spec, ClassToken)]
    arch = Arch(224, 3, (*blocks[:-1], Head(1000)))
    dense = [torch.full((4,), 196.0)] * 3
    torch.testing.assert_close(
        curve_of(arch, body, range(1, 197))(dense) / 1e9, torch.full((4,), billions), rtol=0, atol=5e-5
    )


def test_the_kept_share_of_the_paper_counts_the_class_token() -> None:
    """A pruned network's n does, F_dense does not: rho .65 of that is .646 of what the dense network takes with class token and head."""
    arch, d = zoo.arch("asvit_deit_small"), 384
    counts = [torch.tensor([n], dtype=torch.float64) for n in (137, 96, 67)]
    tokens = torch.tensor([197] * 4 + [138] * 3 + [97] * 3 + [68] * 2)
    paper = int((12 * d**2 * tokens + 2 * d * tokens**2).sum()) + 196 * 768 * d
    assert curve_of(arch, body, range(1, 197))(counts).item() == paper
    dense = curve_of(arch, macs, range(1, 197))([torch.tensor([196.0], dtype=torch.float64)] * 3).item()
    assert dense == whole(zoo.arch("deit_small_patch16_224")) == pytest.approx(4.6e9, rel=0.002)
    assert 0.65 * 4.5736e9 / dense == pytest.approx(0.646, abs=1e-3)
    assert curve_of(arch, macs, range(1, 197))(counts).item() == whole(arch.keeping((137, 96, 67)))


def test_gradients_are_the_slopes() -> None:
    counts = [torch.tensor([40.0], requires_grad=True), torch.tensor([20.0])]
    curve_of(vit((40, 20), True), macs, (1, 30, 60))(counts).sum().backward()
    assert counts[0].grad is not None
    assert counts[0].grad.item() > 0


def test_a_network_that_drops_nothing_has_no_curve() -> None:
    with pytest.raises(ValueError, match="no pruning location"):
        curve_of(zoo.arch("deit_tiny_patch16_224"), macs, (1, 2))
    with pytest.raises(ValueError, match="2 locations need as many"):
        curve_of(vit((40, 20), True), macs, (1, 2))([torch.tensor([1.0])])
