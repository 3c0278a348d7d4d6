"""Costs over kept tokens, against the closed form of the network with exactly so many."""

import pytest
import torch

from compress import curve_of
from search_spaces import Arch, zoo
from search_spaces.blocks import BlockSpec
from search_spaces.states import State
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


def test_asvit_costs_what_its_paper_counts() -> None:
    """4.6 GMACs dense and 3.0 at a ratio of .65, the class token counted, norms not."""
    arch = zoo.arch("asvit_deit_small")
    curve = curve_of(arch, macs, range(1, 197))
    dense = [torch.tensor([196.0])] * 3
    assert curve(dense).item() == pytest.approx(4.6e9, rel=0.01)
    kept = [torch.tensor([137.0]), torch.tensor([96.0]), torch.tensor([67.0])]
    assert curve(kept).item() == pytest.approx(whole(arch.keeping((137, 96, 67))))


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
