"""Published networks as Archs, one file a family, and the way in for their released weights."""

from search_spaces.zoo.loading import arch, from_checkpoint, load_released, names, normalisation, with_new_head

__all__ = ["arch", "from_checkpoint", "load_released", "names", "normalisation", "with_new_head"]
