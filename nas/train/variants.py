"""Training one network as several: at the depth that a step draws (SReT, arXiv 2111.05297) and the size its images have."""

import numpy as np
from torch import Tensor, nn

from nas.data import Data
from nas.evaluate import accuracy, calibration_batches
from nas.train.loop import Recipe
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.variants import extract_variant, most_loops, recalibrate_variant, run_variant

__all__ = ["accuracy_by_loops", "check_depths", "drawn_loops", "step_logits"]

LOOPS = 1  # names the stream that loops are drawn from, apart from all else that is drawn by seed and step


def check_depths(arch: Arch) -> None:
    """Refuse to train a network at several depths that has but one.

    Raises:
        InputError: no block has loops.
    """
    if most_loops(arch) == 1:
        raise InputError(f"network {arch.id} has no loops to train at several depths; leave out --mixed-depth")


def drawn_loops(most: int, seed: int, step: int) -> int:
    """A loop count from 1 to `most`, each as likely, that depends on seed and step alone."""
    return int(np.random.default_rng([seed, step, LOOPS]).integers(1, most + 1))


def step_logits(model: nn.Module, arch: Arch, recipe: Recipe, images: Tensor, step: int) -> Tensor:
    """Logits (B, classes) of the variant of `arch` that a step trains, on the weights of `model`, which is an `arch`.

    With `recipe.sides` it has the size of the images (B, C, S, S), else these are resized to its own; with
    `recipe.mixed_depth` it has the loops that are drawn for the step.
    """
    side = images.shape[-1] if recipe.sides else arch.image_size
    images, variant = resized(images, side), arch if side == arch.image_size else arch.at(side)
    if recipe.mixed_depth:
        variant = variant.with_loops(drawn_loops(most_loops(arch), recipe.seed, step))
    if variant == arch:
        logits: Tensor = model(images)
        return logits
    assert isinstance(model, Network), "variants are of plain networks, not of wrapped ones"
    return run_variant(model, arch, variant, images)


def accuracy_by_loops(network: Network, arch: Arch, data: Data, seed: int) -> dict[str, float]:
    """Accuracy on search-validation with every loop count, "1" to the most, each with BN statistics of its own.

    The network ends with those of its full depth: those of the training are a mixture that is true of none.
    """
    found = {}
    for loops in range(1, most_loops(arch) + 1):
        variant = arch.with_loops(loops)
        stats = recalibrate_variant(network, arch, variant, calibration_batches(data, seed))
        found[str(loops)] = accuracy(extract_variant(network, arch, variant, stats), data, "val")
    network.load_state_dict(stats, strict=False)
    return found
