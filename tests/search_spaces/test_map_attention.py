"""Attention on maps: layouts in which smaller blocks are leading parts of larger ones, names that are shared, odd sides."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces.blocks import MB4D, AttentionEmbed, BlockSpec, Embed, MapAttention
from search_spaces.states import Map

STATE = Map(8, 5, 6)


def shapes(spec: BlockSpec) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in spec.build(STATE).named_parameters()}


@pytest.mark.parametrize(
    ("whole", "part"), [(MapAttention(ratio=2), MB4D(2, mixer="depthwise")), (AttentionEmbed(12), Embed(12))]
)
def test_what_the_block_is_without_attention_shares_its_weights(whole: BlockSpec, part: BlockSpec) -> None:
    """In a slot of a supernet that may hold either."""
    assert shapes(part).items() <= shapes(whole).items()


@pytest.mark.parametrize(
    "make",
    [
        lambda heads: MapAttention(heads, 4, 8, 2, layer_scale=1),
        lambda heads: MapAttention(heads, 4, 8, 2, layer_scale=1, stride=2),
        lambda heads: AttentionEmbed(12, heads, 4, 8),
    ],
)
def test_fewer_heads_are_the_leading_part_of_more(make: Callable[[int], BlockSpec]) -> None:
    """The last of three heads is silenced where heads meet: in the projection, and where they talk."""
    torch.manual_seed(0)
    three, two = make(3).build(STATE).eval(), make(2).build(STATE).eval()
    for parameter in three.parameters():
        nn.init.normal_(parameter, std=0.3)
    large = three.state_dict()
    for name, weight in large.items():
        if name.endswith("proj.conv.weight"):
            weight[:, 16:] = 0
        elif "talking" in name and name.endswith("weight"):
            weight[:, 2:] = 0
    small = {name: large[name][tuple(slice(length) for length in own.shape)] for name, own in two.state_dict().items()}
    two.load_state_dict(small)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(two(x), three(x), rtol=1e-4, atol=1e-5)


def test_strided_attention_on_odd_sides_reads_as_on_a_larger_map() -> None:
    """Without biases, a map with a row and a column of the place that the padding stands for gives the same places."""
    torch.manual_seed(0)
    odd = MapAttention(2, 4, 8, stride=2).build(Map(8, 5, 7)).eval()
    even = MapAttention(2, 4, 8, stride=2).build(Map(8, 6, 8)).eval()
    even.load_state_dict(odd.state_dict())  # both work on 3 x 4 places
    x = torch.randn(1, 8, 5, 7)
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    found, wanted = odd.token_mixer(x), even.token_mixer(padded)
    assert found.shape == x.shape
    torch.testing.assert_close(found, wanted[:, :, :5, :7])


def test_a_bias_is_one_for_each_head_and_offset() -> None:
    """Equal offsets, whatever their sign, share one, and every one of the table is some pair's."""
    core = AttentionEmbed(12, 2, 4, 8).build(STATE).attention.core
    assert core.bias_index.shape == (9, 30)
    for query, key in [(0, 0), (4, 13), (8, 29), (2, 12)]:
        y, x = 2 * (query // 3) - key // 6, 2 * (query % 3) - key % 6
        assert core.bias_index[query, key] == abs(y) * 6 + abs(x)
    assert core.bias_index.unique().tolist() == list(range(30))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MapAttention(stride=3), "stride 1 or 2, got 3"),
        (lambda: MapAttention(heads=0), "must be at least 1"),
        (lambda: AttentionEmbed(0), "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], BlockSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
