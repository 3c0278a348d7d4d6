"""Supernet training: the sandwich rule with in-place distillation (BigNAS, arXiv 2003.11142, section 3).

It may start from the largest network, trained alone first (once-for-all, arXiv 1908.09791, section 3.3).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.losses import distillation
from nas.data import Data
from nas.evaluate import accuracy, calibration_batches
from nas.runs import Run, load_weights, save_weights
from nas.train.loop import Objective, Recipe, check_batch, check_norms, fit
from nas.train.retrain import load_network, retrain
from search_spaces import SPACES, Space, Supernet
from search_spaces.errors import InputError

__all__ = ["RANDOM_PER_STEP", "WEIGHTS", "load_supernet", "new_supernet", "sandwich", "space_named", "train_supernet"]

RANDOM_PER_STEP = 1  # random networks per step, beside the largest and the smallest
WEIGHTS = "supernet.safetensors"
LARGEST = "largest"  # folder of the largest network, trained alone first


def space_named(name: str, classes: int) -> Space:
    """The space `name` for a number of classes.

    Raises:
        InputError: there is no such space.
    """
    if name not in SPACES:
        raise InputError(f"no space called {name!r}; known: {', '.join(SPACES)}")
    return SPACES[name](classes=classes)


def new_supernet(space: Space, seed: int) -> Supernet:
    """A supernet whose fresh weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Supernet(space)


def sandwich(space: Space, recipe: Recipe, steps: int, *, trained: bool = False) -> Objective:
    """The objective: the largest network learns the labels; the smallest and random ones, of every cost, its scores too.

    The share of those scores grows over the `steps` from none to all, because those of an untrained network say nothing;
    where the largest network is `trained` to begin with, there are no labels beside them.
    """

    def losses(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        rng = np.random.default_rng([recipe.seed, step])
        logits = model(images, space.largest)
        yield F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
        teacher = logits.detach()
        for arch in (space.smallest, *(space.spread(rng) for _ in range(RANDOM_PER_STEP))):
            logits = model(images, arch)
            loss = distillation(logits, teacher)
            if not trained:
                supervised = F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
                loss = torch.lerp(supervised, loss, step / steps)
            yield loss

    return losses


def train_supernet(
    space: Space, data: Data, recipe: Recipe, out: Path, *, largest_epochs: int = 0, resume: bool = False
) -> dict[str, Any]:
    """Train a supernet of `space` into the run folder `out`; returns the run's summary.

    Args:
        space: whose networks share the weights.
        data: what it is trained on.
        recipe: how.
        out: the run's folder.
        largest_epochs: for which the largest network is trained alone first, by the same recipe, into the run folder
            `out/largest`; the supernet starts from its weights, and all others learn from its scores alone. 0: fresh weights.
        resume: go on with what is in `out`.

    Raises:
        InputError: data and space disagree on image size or classes, `largest_epochs` is negative, or `out` holds another run.
    """
    if largest_epochs < 0:
        raise InputError(f"the epochs of the largest network alone must be at least 0, got {largest_epochs}")
    if data.image_size != space.largest.image_size or data.classes != space.classes:
        raise InputError(
            f"space {space.name} takes {space.largest.image_size}-pixel images of {space.classes} classes, "
            f"but {data.name} has {data.image_size} pixels and {data.classes} classes"
        )
    check_batch(recipe, data)
    with torch.device("meta"):
        check_norms(space.largest.build(), recipe, data)
    config = {"space": space.name, "classes": space.classes, "data": data.name, "recipe": recipe.described()}
    if largest_epochs:
        config["largest_epochs"] = largest_epochs
    run = Run.start(out, "train", config, resume=resume)
    if run.summary is not None:
        return run.summary
    with run.locked():
        supernet = new_supernet(space, recipe.seed)
        if largest_epochs:
            first = replace(recipe, epochs=largest_epochs)
            retrain(space.largest, data, first, out / LARGEST, resume=True)
            supernet.absorb(space.largest, load_network(out / LARGEST)[0].state_dict())
        objective = sandwich(space, recipe, recipe.steps(data), trained=largest_epochs > 0)
        fit(supernet, objective, data, recipe, out / "checkpoint.pt", f"supernet {space.name}")
        save_weights(out / WEIGHTS, supernet.state_dict())
        found = {}
        for name, arch in (("largest", space.largest), ("smallest", space.smallest)):
            network = supernet.extract(arch, supernet.recalibrate(arch, calibration_batches(data, recipe.seed)))
            found[f"{name}_acc"] = accuracy(network, data.at(arch.image_size), "val")
        summary = run.finish({"supernet": str(out), **found})
        (out / "checkpoint.pt").unlink()
    return summary


def load_supernet(path: Path) -> tuple[Supernet, Run]:
    """A trained supernet and its run.

    Raises:
        InputError: no finished supernet there, or its weights do not fit the space.
    """
    run = Run.open(path, "train")
    if run.summary is None:
        raise InputError(
            f"the supernet in {path} is not trained to the end; go on with `nas train --resume --out {path}`"
        )
    supernet = new_supernet(space_named(run.config["space"], run.config["classes"]), 0)
    try:
        supernet.load_state_dict(load_weights(path / WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"{path / WEIGHTS} does not fit the space {run.config['space']}; train again") from error
    return supernet.eval(), run
