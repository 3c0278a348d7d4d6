"""Training: the loop, the supernet recipe, the retrain recipe."""
