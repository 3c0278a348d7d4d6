"""What to remove from a trained network, and how to heal it."""

from compress.losses import distillation

__all__ = ["distillation"]
