"""Losses of token thresholds: published costs, slopes, and what the sum is made of."""

import pytest
import torch
import torch.nn.functional as F

from compress import budget_loss, distillation, piecewise, token_loss
from search_spaces.tokens import soft_mask

POINTS, VALUES = (10.0, 20.0, 50.0), (3.0, 4.0, 13.0)


def test_budget_holds_the_mean_of_the_images_costs_and_pulls_from_both_sides() -> None:
    def squares(counts: list[torch.Tensor]) -> torch.Tensor:
        return counts[0] ** 2

    counts = torch.tensor([1.0, 3.0], requires_grad=True)
    assert budget_loss([counts], squares, 5.0).item() == 0  # not 4, the cost of the mean count
    for target, gradient in ((4.0, [1.0, 3.0]), (6.5, [-1.0, -3.0])):
        counts.grad = None
        loss = budget_loss([counts], squares, target)
        assert loss.item() == pytest.approx(abs(5 - target))
        loss.backward()
        assert counts.grad is not None
        assert counts.grad.tolist() == gradient


def test_over_budget_raises_every_threshold_and_under_budget_lowers_it() -> None:
    def curve(counts: list[torch.Tensor]) -> torch.Tensor:
        return sum((30 * n + n**2 for n in counts), torch.tensor(300.0))

    scores = torch.linspace(0.1108, 0.1114, 9).expand(2, 9)
    for share, sign in ((0.5, 1), (2.0, -1)):
        scaled = torch.ones(2, requires_grad=True)
        first = soft_mask(scores, scaled[0], 9)
        second = soft_mask(scores, scaled[1], 9, earlier=first)
        dense = curve([torch.full((2,), 9.0)] * 2).mean().item()
        budget_loss([first.sum(-1), second.sum(-1)], curve, share * dense).backward()
        assert scaled.grad is not None
        assert (-sign * scaled.grad > 0).all()  # descent moves against the gradient


def test_piecewise_meets_its_points_and_goes_on_beyond_them() -> None:
    counts = torch.tensor([0.0, 10.0, 15.0, 20.0, 35.0, 50.0, 60.0], requires_grad=True)
    values = piecewise(counts, POINTS, VALUES)
    torch.testing.assert_close(values, torch.tensor([2.0, 3.0, 3.5, 4.0, 8.5, 13.0, 16.0]))
    values.sum().backward()
    assert counts.grad is not None
    torch.testing.assert_close(counts.grad, torch.tensor([0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3]))


def test_piecewise_takes_two_points_and_any_shape() -> None:
    counts = torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    assert piecewise(counts, (1, 2), (5, 7)).tolist() == [[3, 5], [7, 11]]


@pytest.mark.parametrize(
    ("points", "values"), [((1.0,), (1.0,)), ((1.0, 2.0), (1.0,)), ((2.0, 1.0), (1.0, 2.0)), ((1.0, 1.0), (1.0, 2.0))]
)
def test_piecewise_refuses_points_that_make_no_curve(points: tuple[float, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="points"):
        piecewise(torch.zeros(1), points, values)


def test_a_budget_in_measured_milliseconds_is_a_curve_too() -> None:
    counts = [torch.tensor([10.0, 20.0], requires_grad=True), torch.tensor([50.0, 20.0], requires_grad=True)]
    loss = budget_loss(counts, lambda n: sum((piecewise(x, POINTS, VALUES) for x in n), torch.tensor(2.0)), 9.0)
    assert loss.item() == pytest.approx((18 + 10) / 2 - 9)
    loss.backward()
    assert counts[0].grad is not None
    torch.testing.assert_close(counts[0].grad, torch.tensor([0.05, 0.15]))


def test_token_loss_is_the_weighted_sum_and_spares_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 3, generator=generator, requires_grad=True)
    labels, budget = torch.tensor([0, 2, 1, 1]), torch.tensor(0.7, requires_grad=True)
    task, likeness = F.cross_entropy(logits, labels), distillation(logits, teacher)
    loss = token_loss(logits, labels, teacher, budget)
    torch.testing.assert_close(loss, task + 2 * budget + 0.5 * likeness)
    torch.testing.assert_close(
        token_loss(logits, labels, teacher, budget, 3, 5, 7), 3 * task + 5 * budget + 7 * likeness
    )
    loss.backward()
    assert teacher.grad is None
    assert logits.grad is not None and budget.grad is not None
    assert budget.grad.item() == 2
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(token_loss(logits, shares, teacher, budget), loss)


def test_token_loss_smooths_labels_softens_scores_and_does_without_a_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 4, 3, generator=generator)
    labels, budget = torch.tensor([0, 2, 1, 1]), torch.tensor(0.7)
    task = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(token_loss(logits, labels, None, budget, smoothing=0.2), task + 1.4)
    softer = token_loss(logits, labels, teacher, budget, temperature=3.0, smoothing=0.2)
    torch.testing.assert_close(softer, task + 1.4 + 0.5 * distillation(logits, teacher, 3.0))
