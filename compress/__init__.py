"""What to remove from a trained network, and how to heal it."""

from compress.curves import curve_of
from compress.losses import distillation
from compress.token_losses import budget_loss, macs_curve, piecewise, token_loss

__all__ = ["budget_loss", "curve_of", "distillation", "macs_curve", "piecewise", "token_loss"]
