"""Retraining one network, with distillation from a teacher where there is one."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.losses import distillation
from nas.data import Data, check_channels
from nas.evaluate import accuracy
from nas.processes import accelerator, leads, processes
from nas.runs import Run, digest
from nas.train.loop import Objective, Recipe, check_batch, check_shared, fit
from nas.train.variants import accuracy_by_loops, check_depths, step_logits
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError
from search_spaces.variants import check_sides

__all__ = ["Teacher", "asked", "begun", "check_fit", "fresh_network", "load_network", "retrain"]


@dataclass(frozen=True)
class Teacher:
    """A trained network whose scores guide the student; `weight` is its share of the loss."""

    network: nn.Module
    classes: int
    weight: float = 0.5
    temperature: float = 2.0
    remembered: dict[tuple[Recipe, int, torch.Size], Tensor] | None = (
        None  # a dict here keeps scores for other students on the same data
    )

    def __post_init__(self) -> None:
        """Refuse a loss that means nothing."""
        if not 0 <= self.weight <= 1:
            raise InputError(f"the teacher's share of the loss must be from 0 to 1, got {self.weight}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"the temperature of the distillation must be positive and finite, got {self.temperature}")

    def described(self) -> dict[str, Any]:
        """What a run's config says of it."""
        return {"weights": digest(self.network.state_dict()), "weight": self.weight, "temperature": self.temperature}

    @torch.no_grad()
    def scores(self, images: Tensor, recipe: Recipe, step: int) -> Tensor:
        """Logits (B, classes) for the images of a step; recipe, step and shape decide the batch: equal ones are looked up."""
        self.network.eval().to(images.device)
        if self.remembered is None:
            logits: Tensor = self.network(images)
            return logits
        key = (recipe, step, images.shape)
        if key not in self.remembered:
            self.remembered[key] = self.network(images)
        return self.remembered[key]


def supervised(recipe: Recipe, teacher: Teacher | None, arch: Arch | None = None) -> Objective:
    """The objective: cross-entropy on the labels, mixed with distillation where there is a teacher.

    A model that is an `arch` runs as the variant of it that the step trains: of the size of the images, at the depth that
    the recipe draws. Without `arch`, the model takes the images as they are.
    """

    def losses(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        logits = model(images) if arch is None else step_logits(model, arch, recipe, images, step)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
        if teacher is not None:
            target = teacher.scores(images, recipe, step)
            loss = torch.lerp(loss, distillation(logits, target, teacher.temperature), teacher.weight)
        yield loss

    return losses


def fresh_network(arch: Arch, seed: int) -> Network:
    """The network with weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arch.build()


def retrain(
    arch: Arch,
    data: Data,
    recipe: Recipe,
    out: Path,
    *,
    start: dict[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `arch` from the weights `start`, or from fresh ones, into the run folder `out`; returns the run's summary.

    Images larger than the network's are resized for it; a teacher sees them as they are. The accuracy reported is on search-validation; the test split stays unread. With `recipe.mixed_depth`, `by_loops` holds
    that of every loop count. Processes that torchrun started train it together; the first writes and evaluates, for the others
    the summary is empty.

    Raises:
        InputError: network, data, recipe or teacher do not fit each other, or `out` holds another run.
    """
    check_fit(arch, data, recipe, teacher)
    check_shared(recipe)
    run = begun(out, asked(arch, data, recipe, start, teacher), resume)
    if run.summary is not None:
        return run.summary
    with run.locked() if leads() else nullcontext():
        network = fresh_network(arch, recipe.seed)
        if start is not None:
            network.load_state_dict(start)
        fit(network, supervised(recipe, teacher, arch), data, recipe, out / "checkpoint.pt", f"train {out.name}")
        if not leads():
            return {}
        own = data.at(arch.image_size)
        depths = {"by_loops": accuracy_by_loops(network, arch, own, recipe.seed)} if recipe.mixed_depth else {}
        run.save_network(arch, network.state_dict())
        found = {"val_acc": accuracy(network, own, "val"), **depths}
        summary = run.finish({**found, "weights": str(out / "weights.safetensors")})
        (out / "checkpoint.pt").unlink()
    return summary


def begun(out: Path, config: dict[str, Any], resume: bool) -> Run:
    """The training run, which the first of several processes begins, and the others find.

    Raises:
        InputError: as `Run.start`.
    """
    if processes() == 1:
        return Run.start(out, "retrain", config, resume=resume)
    run = Run.start(out, "retrain", config, resume=resume) if leads() else None
    accelerator().wait_for_everyone()
    return run or Run.open(out, "retrain")


def asked(
    arch: Arch, data: Data, recipe: Recipe, start: dict[str, Tensor] | None, teacher: Teacher | None
) -> dict[str, Any]:
    """What a training run is resumed by: all that decides its weights."""
    return {
        "arch": arch.id,
        "data": data.name,
        "recipe": recipe.described(),
        "start": None if start is None else digest(start),
        "teacher": None if teacher is None else teacher.described(),
    }


def check_fit(arch: Arch, data: Data, recipe: Recipe, teacher: Teacher | None) -> None:
    """Refuse to train where network, data, recipe or teacher do not fit each other."""
    if arch.image_size > data.image_size or arch.classes != data.classes:
        raise InputError(
            f"network {arch.id} takes {arch.image_size}-pixel images of {arch.classes} classes, "
            f"but {data.name} has {data.image_size} pixels and {data.classes} classes"
        )
    check_channels(arch.channels, data)
    if teacher is not None and teacher.classes != arch.classes:
        raise InputError(
            f"the teacher tells {teacher.classes} classes apart, the network {arch.classes}; choose another"
        )
    check_batch(recipe, data)
    check_sides(arch, recipe.sides)
    if recipe.mixed_depth:
        check_depths(arch)


def load_network(path: Path, kind: str = "retrain") -> tuple[Network, Arch, Run]:
    """The network of a retrain run, or of a run of another kind that holds one, in eval mode.

    Raises:
        InputError: no such run, or weights that do not fit its architecture.
    """
    run = Run.open(path, kind)
    arch = run.arch()
    network = arch.build()
    try:
        network.load_state_dict(run.weights())
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit its architecture; train again") from error
    return network.eval(), arch, run
