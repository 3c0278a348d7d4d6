"""Interpolation of what belongs to a grid: values made by hand, constants, identity, gradients."""

import pytest
import torch
from torch import Tensor

from search_spaces.blocks import MB3D
from search_spaces.regrid import map_places, offsets, token_places
from search_spaces.states import Map


def line(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_an_offset_stands_for_the_same_share_of_the_image() -> None:
    """On a grid twice as fine, the offset 1 is half of one of the old; the last stands for more than there is."""
    table = line(0, 10, 30, 100)  # a row of four places
    torch.testing.assert_close(offsets(table, (1, 4), (1, 8)), line(0, 5, 10, 20, 30, 65, 100, 100))
    torch.testing.assert_close(offsets(table, (1, 4), (1, 2)), line(0, 30))
    torch.testing.assert_close(offsets(table, (1, 4), (1, 3)), line(0, 10 + 20 / 3, 30 + 140 / 3))


def test_offsets_of_rows_and_columns_keep_apart() -> None:
    """|dy| * w + |dx|, with another w on the new grid."""
    table = line(0, 1, 2, 100, 101, 102)  # two rows of three places: 100 |dy| + |dx|
    wanted = [100 * dy + dx for dy in (0, 0.5, 1, 1) for dx in (0, 1, 2)]
    torch.testing.assert_close(offsets(table, (2, 3), (4, 3)), line(*wanted))
    wanted = [100 * dy + dx for dy in (0, 1) for dx in (0, 0.5, 1, 1.5, 2, 2)]
    torch.testing.assert_close(offsets(table, (2, 3), (2, 6)), line(*wanted))


def test_centres_of_places_meet() -> None:
    table = line(0, 10, 30, 100)[None]  # one channel, one row
    torch.testing.assert_close(map_places(table, (1, 8)), line(0, 2.5, 7.5, 15, 25, 47.5, 82.5, 100)[None])
    torch.testing.assert_close(map_places(table, (1, 2)), line(5, 65)[None])
    torch.testing.assert_close(map_places(table, (2, 4)), table.expand(1, 2, 4))


def test_tables_of_tokens_are_those_of_maps_behind_the_prefix() -> None:
    table = torch.randn(2 + 6, 5)
    wanted = map_places(table[2:].T.reshape(5, 2, 3), (4, 5)).flatten(1).T
    found = token_places(table, (2, 3), (4, 5), prefix=2)
    assert torch.equal(found[:2], table[:2])
    torch.testing.assert_close(found[2:], wanted)
    torch.testing.assert_close(token_places(table[2:], (2, 3), (4, 5)), wanted)


@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (14, 14)])
def test_constants_stay_constant_and_equal_grids_change_nothing(grid: tuple[int, int]) -> None:
    for carried in (
        offsets(torch.full((2, 20), 0.3), (4, 5), grid),
        map_places(torch.full((2, 4, 5), 0.3), grid),
        token_places(torch.full((21, 2), 0.3), (4, 5), grid, prefix=1),
    ):
        torch.testing.assert_close(carried, torch.full_like(carried, 0.3))
    table = torch.randn(3, 20)
    assert offsets(table, (4, 5), (4, 5)).data_ptr() == table.data_ptr()
    assert map_places(table.view(3, 4, 5), (4, 5)).data_ptr() == table.data_ptr()
    assert token_places(table.T, (4, 5), (4, 5)).data_ptr() == table.data_ptr()


def test_gradients_are_those_of_a_linear_map() -> None:
    table = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda own: offsets(own, (2, 3), (3, 5)), table)
    assert torch.autograd.gradcheck(lambda own: map_places(own.view(2, 2, 3), (3, 5)), table)
    assert torch.autograd.gradcheck(lambda own: token_places(own.view(6, 2), (2, 3), (3, 5)), table)


def test_a_bias_that_is_linear_in_the_offset_biases_the_same_pairs_alike() -> None:
    """Through the block: far as in the image is what the bias goes by, on both grids."""
    spec, finer = MB3D(1, 2, 2), Map(4, 8, 8)
    table = torch.arange(4.0).repeat(4)[None]  # |dx|
    module = spec.build(finer)
    carried = spec.regrid("token_mixer.attention_biases", table, finer, (4, 4))
    index = module.token_mixer.cuts[0].bias_index[0]
    bias = carried[0][index]  # (64, 64)
    assert bias[0, 2] == bias[8, 10] == bias[0, 58] == 1  # two places of the finer grid are one of the other


def test_tables_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is \(heads, 6\), got \(2, 5\)"):
        offsets(torch.zeros(2, 5), (2, 3), (4, 4))
    with pytest.raises(ValueError, match=r"is \(7, C\), got \(6, 4\)"):
        token_places(torch.zeros(6, 4), (2, 3), (4, 4), prefix=1)
