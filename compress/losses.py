"""Training losses that heal a compressed network."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["distillation", "feature_distance"]


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL divergence from the teacher's to the student's softened class scores (Hinton et al., arXiv 1503.02531, section 2).

    Both (B, classes) logits; scaled by the squared temperature, so gradients keep their size. No gradient reaches the teacher.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=-1)
    guess = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(guess, target, reduction="batchmean", log_target=True) * temperature**2


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the features (B, channels) of two encoders over the squares of the teacher's, which get no gradient."""
    target = teacher.detach()
    return (student - target).square().sum() / target.square().sum()
