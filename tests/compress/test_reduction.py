"""Smaller parts of a ViT against what can be told by hand."""

import pytest
import torch
from torch import Tensor

from compress import reduction
from compress.reduction import eliminate, narrower_queries, narrower_values, refit


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(x: Tensor) -> Tensor:
    return x.T @ x


def with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def test_queries_and_keys_of_low_rank_lose_nothing() -> None:
    q, k = drawn(200, 3) @ drawn(3, 8, seed=1), drawn(200, 8, seed=2)
    b, c = narrower_queries(moment(q), moment(k), 3)
    assert b.shape == c.shape == (8, 3)
    assert torch.dist((q @ b) @ (k @ c).T, q @ k.T) < 1e-2 * torch.linalg.norm(q @ k.T)


def test_no_choice_of_channels_keeps_products_of_queries_and_keys_as_well() -> None:
    q, k = drawn(300, 6) @ drawn(6, 6, seed=1), drawn(300, 6, seed=2) @ drawn(6, 6, seed=3)
    whole = q @ k.T
    b, c = narrower_queries(moment(q), moment(k), 4)
    lost = float(torch.dist((q @ b) @ (k @ c).T, whole) / torch.linalg.norm(whole))
    channels = [sorted({0, 1, 2, 3, 4, 5} - {i, j}) for i in range(6) for j in range(i)]
    assert lost < 0.8 * min(float(torch.dist(q[:, n] @ k[:, n].T, whole) / torch.linalg.norm(whole)) for n in channels)


def test_values_in_fewer_channels_give_what_the_best_projection_of_that_rank_gives() -> None:
    v, projection = drawn(300, 8) @ drawn(8, 8, seed=1), drawn(8, 20, seed=2)
    whole = v @ projection
    narrow, new = narrower_values(moment(v), projection, 5)
    assert narrow.shape == (8, 5) and new.shape == (5, 20)
    best = torch.linalg.svdvals(whole)
    assert float(torch.dist(v @ narrow @ new, whole)) == pytest.approx(float(best[5:].norm()), rel=0.02)


def test_what_the_others_can_take_over_goes_first() -> None:
    x = drawn(400, 6)
    x = torch.cat(
        [x, x[:, :1] + x[:, 1:2], 0.01 * drawn(400, 1, seed=3)], 1
    )  # a sum of two others, and hardly anything
    matrix = torch.cat([drawn(8, 5, seed=1), drawn(1, 5, seed=2)])
    inputs = with_constant(x)
    found = eliminate(moment(inputs), matrix)
    assert set(found.order[:2].tolist()) <= {0, 1, 6, 7} and 7 in found.order[:2]
    assert found.errors[0] == 0 and found.errors[2] < 1e-3 < 0.02 < found.errors[3]
    assert (found.errors.diff() >= -1e-9).all()


@pytest.mark.parametrize("size", [1, 2])
def test_errors_are_those_of_the_refitted_layer(size: int) -> None:
    x = drawn(400, 8) @ drawn(8, 8, seed=4)
    inputs, matrix = with_constant(x), drawn(9, 5, seed=1)
    whole = inputs @ matrix
    found = eliminate(moment(inputs), matrix, size)
    for gone in range(1, len(found.order)):
        kept = found.order[gone:].sort().values
        new = refit(moment(inputs), matrix, kept, size)
        rows = torch.cat([(kept[:, None] * size + torch.arange(size)).flatten(), torch.tensor([8])])
        lost = float(torch.dist(inputs[:, rows] @ new, whole) / torch.linalg.norm(whole)) ** 2
        assert float(found.errors[gone]) == pytest.approx(lost, rel=0.1, abs=1e-4)


def test_an_inverse_that_is_brought_up_to_date_late_gives_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, matrix = with_constant(drawn(500, 20) @ drawn(20, 20, seed=5)), drawn(21, 5, seed=1)
    late = eliminate(moment(inputs), matrix)
    monkeypatch.setattr(reduction, "LAZY", 3)
    soon = eliminate(moment(inputs), matrix)
    assert torch.equal(late.order, soon.order) and sorted(late.order.tolist()) == list(range(20))
    torch.testing.assert_close(late.errors, soon.errors)


def test_of_two_that_say_the_same_only_one_goes() -> None:
    x = drawn(400, 6)
    inputs, matrix = with_constant(torch.cat([x, x], 1)), drawn(13, 5, seed=1)
    found = eliminate(moment(inputs), matrix)
    assert sorted((found.order[:6] % 6).tolist()) == list(range(6)) and found.errors[6] < 1e-3 < found.errors[7]


def test_what_the_images_do_not_show_stays_as_it_was() -> None:
    inputs = with_constant(torch.cat([drawn(50, 3), torch.zeros(50, 1, dtype=torch.float64)], 1))
    matrix = drawn(5, 2, seed=1)
    new = refit(moment(inputs), matrix, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(new, matrix)
