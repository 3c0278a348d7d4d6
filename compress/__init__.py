"""What to remove from a trained network, and how to heal it."""

from compress.adapters import from_module
from compress.cascade import cascade, exit_loss
from compress.curves import curve_of
from compress.losses import distillation, feature_distance
from compress.normalise import seeing
from compress.prune import BudgetTooSmall, Cost, Macs, Pruned, prune
from compress.thresholds import calibrate, counts_of, hold, thresholds_of
from compress.token_losses import budget_loss, piecewise, token_loss

__all__ = [
    "BudgetTooSmall",
    "Cost",
    "Macs",
    "Pruned",
    "budget_loss",
    "calibrate",
    "cascade",
    "counts_of",
    "curve_of",
    "distillation",
    "exit_loss",
    "feature_distance",
    "from_module",
    "hold",
    "piecewise",
    "prune",
    "seeing",
    "thresholds_of",
    "token_loss",
]
