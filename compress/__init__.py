"""What to remove from a trained network, and how to heal it."""

from compress.losses import distillation
from compress.token_losses import budget_loss, macs_curve, piecewise, token_loss

__all__ = ["budget_loss", "distillation", "macs_curve", "piecewise", "token_loss"]
