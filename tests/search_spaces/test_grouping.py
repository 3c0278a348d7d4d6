"""Groups of tokens: which tokens see each other, and that they find back."""

import numpy as np
import pytest
import torch

from search_spaces.blocks import MB3D
from search_spaces.blocks.attention import offset_index
from search_spaces.grouping import ORDERS, arrangement, inverse, unfolded
from search_spaces.states import Tokens

STATE = Tokens(12, 6, (3, 4))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("groups", [1, 2, 3, 12])
def test_every_token_is_in_one_group_and_finds_back(order: str, groups: int) -> None:
    tokens = arrangement(12, groups, order, seed=1)
    assert sorted(tokens.tolist()) == list(range(12))
    x = torch.randn(12)
    assert torch.equal(x[tokens][inverse(tokens)], x)


def test_orders_are_the_ones_described() -> None:
    assert arrangement(6, 2, "contiguous").tolist() == [0, 1, 2, 3, 4, 5]
    assert arrangement(6, 2, "strided").tolist() == [0, 2, 4, 1, 3, 5]
    assert arrangement(6, 2, "permuted", seed=5).tolist() == np.random.default_rng(5).permutation(6).tolist()
    with pytest.raises(ValueError, match="6 tokens cannot be cut into 4"):
        arrangement(6, 4, "contiguous")


def test_unfolded_places_lie_alike_in_their_tiles() -> None:
    places = np.arange(24).reshape(4, 6)
    wanted = [places[y::2, x::2].ravel().tolist() for y in (0, 1) for x in (0, 1)]
    assert unfolded((4, 6), 2).reshape(4, -1).tolist() == wanted
    tiles = np.concatenate([places[y : y + 2, x : x + 2].ravel() for y in (0, 2) for x in (0, 2, 4)])
    assert unfolded((4, 6), 2).tolist() == tiles[arrangement(24, 4, "strided")].tolist(), (
        "the strided order of the tiles"
    )
    assert unfolded((6, 6), 3).reshape(9, -1)[4].tolist() == [7, 10, 25, 28]
    with pytest.raises(ValueError, match="5 x 4 places is no whole number of tiles of 2 x 2"):
        unfolded((5, 4), 2)


@pytest.mark.parametrize("order", ORDERS)
def test_grouped_attention_is_whole_attention_with_the_other_groups_masked(order: str) -> None:
    spec = MB3D(2, 4, 8, groups=(3,), orders=(order,))
    torch.manual_seed(0)
    attention = spec.build(STATE).token_mixer
    torch.nn.init.normal_(attention.attention_biases)
    x = torch.randn(2, 12, 6)
    group = inverse(arrangement(12, 3, order)) // 4
    qkv = attention.qkv(x).reshape(2, 12, 2, 16).transpose(1, 2)
    q, k, v = qkv.split([4, 4, 8], dim=-1)
    logits = q @ k.transpose(-2, -1) / 2 + attention.attention_biases[:, offset_index((3, 4))]
    logits = logits.masked_fill(group[:, None] != group[None, :], float("-inf"))
    whole = attention.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 12, 16))
    torch.testing.assert_close(attention(x)[0], whole)


def test_without_the_inverse_the_branch_keeps_the_groups_order() -> None:
    torch.manual_seed(0)
    there = MB3D(2, 4, 8, groups=(3,), orders=("strided",)).build(STATE).token_mixer
    stays = MB3D(2, 4, 8, groups=(3,), orders=("strided",), inverse=False).build(STATE).token_mixer
    stays.load_state_dict(there.state_dict())
    x = torch.randn(2, 12, 6)
    torch.testing.assert_close(stays(x)[0], there(x)[0][:, arrangement(12, 3, "strided")])


def test_loops_apply_the_same_weights_with_their_own_projection() -> None:
    torch.manual_seed(0)
    twice = MB3D(2, 4, 8, loops=2, nll=1, residual="coefficients").build(STATE)
    first, second = (MB3D(2, 4, 8, nll=1, residual="coefficients").build(STATE) for _ in range(2))
    weights = twice.state_dict()
    for loop, once in enumerate((first, second)):
        own = {name: value for name, value in weights.items() if not name.startswith(f"nll.{1 - loop}.")}
        once.load_state_dict({name.replace(f"nll.{loop}.", "nll.0."): value for name, value in own.items()})
    x = torch.randn(2, 12, 6)
    torch.testing.assert_close(twice(x), second(first(x)))
    assert not torch.allclose(twice(x), first(first(x)))
