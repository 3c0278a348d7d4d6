"""Losses that learn token thresholds against a budget (AS-ViT, arXiv 2209.13802)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.losses import distillation

__all__ = ["Curve", "budget_loss", "piecewise", "token_loss"]

Curve = Callable[[Sequence[Tensor]], Tensor]
"""From each location's kept tokens, (B,) each, to what the images cost, (B,)."""


def budget_loss(counts: Sequence[Tensor], curve: Curve, target: float) -> Tensor:
    """How far the mean cost over a batch is from `target`, in the units of `curve`; images may differ as long as the mean holds.

    `counts` holds for each pruning location how many tokens each image keeps, (B,), with gradient (sums of `tokens.soft_mask`).
    """
    return (curve(counts).mean() - target).abs()


def piecewise(counts: Tensor, points: Sequence[float], values: Sequence[float]) -> Tensor:
    """Values at `counts`, linear between measured points, with the slope as gradient; beyond them the end segments go on.

    At a point itself the slope is that of the segment to its right.

    Args:
        counts: any shape, floating point.
        points: at least two, ascending: the counts that were measured.
        values: what was measured there, for instance milliseconds.

    Raises:
        ValueError: points and values are not as described.
    """
    if len(points) != len(values) or len(points) < 2:
        raise ValueError(
            f"two points or more, each with a value, are needed, got {len(points)} and {len(values)} values"
        )
    if any(right <= left for left, right in pairwise(points)):
        raise ValueError(f"points must ascend, got {list(points)}")
    x, y = (torch.as_tensor(data, dtype=counts.dtype, device=counts.device) for data in (points, values))
    segment = torch.bucketize(counts.detach(), x[1:-1], right=True)
    slope = y.diff() / x.diff()
    return y[segment] + slope[segment] * (counts - x[segment])


def token_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    budget: Tensor,
    label_weight: float = 1.0,
    budget_weight: float = 2.0,
    teacher_weight: float = 0.5,
    *,
    temperature: float = 1.0,
    smoothing: float = 0.0,
) -> Tensor:
    """The weighted sum of cross-entropy, a `budget_loss` and the KL divergence from the dense teacher to the student.

    Args:
        logits: (B, classes) of the pruned network.
        labels: (B,) classes, or (B, classes) shares.
        teacher_logits: (B, classes), or None for no divergence; no gradient reaches the teacher.
        budget: scalar; the default weight is AS-ViT's for 10⁹ MACs.
        label_weight: of the cross-entropy.
        budget_weight: of `budget`.
        teacher_weight: of the divergence.
        temperature: that softens both scores in the divergence.
        smoothing: of the labels.
    """
    task = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    loss = label_weight * task + budget_weight * budget
    if teacher_logits is None:
        return loss
    return loss + teacher_weight * distillation(logits, teacher_logits, temperature)
