"""Distillation against its definition."""

import torch

from compress import distillation


def test_value_is_the_mean_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).unbind()
    temperature = 3.0
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    wanted = (p * (p / q).log()).sum(-1).mean() * temperature**2
    torch.testing.assert_close(distillation(student, teacher, temperature), wanted)


def test_equal_logits_cost_nothing_and_the_teacher_gets_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    assert distillation(logits.detach(), logits.detach()).abs() < 1e-6
    student = torch.randn(4, 3, requires_grad=True)
    distillation(student, logits).backward()
    assert logits.grad is None
    assert student.grad is not None
