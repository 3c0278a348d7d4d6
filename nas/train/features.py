"""Training an encoder, which has no classes, to give the features of another."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import feature_distance
from nas.data import Data, Split
from nas.processes import leads
from nas.train.loop import Objective, Recipe, check_batch, check_shared, fit
from nas.train.retrain import Teacher, asked, begun, fresh_network
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError
from search_spaces.resize import resized

__all__ = ["follow_features", "mean_distance"]

BATCH = 250


def follow_features(
    arch: Arch,
    data: Data,
    recipe: Recipe,
    out: Path,
    teacher: Teacher,
    *,
    start: dict[str, Tensor] | None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the encoder `arch` from the weights `start`, or from fresh ones, into the run folder `out`, by a teacher alone.

    Processes that torchrun started train it together; the first writes and measures, for the others the summary is empty.

    Returns:
        The run's summary: `val_distance`, see `compress.feature_distance`, on search-validation; `weights`.

    Raises:
        InputError: teacher and network give other numbers of features, or `out` holds another run.
    """
    if teacher.classes != arch.classes:
        raise InputError(f"the teacher gives {teacher.classes} features, the network {arch.classes}; choose another")
    check_shared(recipe)
    check_batch(recipe, data)
    run = begun(out, asked(arch, data, recipe, start, teacher), resume)
    if run.summary is not None:
        return run.summary
    with run.locked() if leads() else nullcontext():
        network = fresh_network(arch, recipe.seed)
        if start is not None:
            network.load_state_dict(start)
        fit(network, _following(teacher, arch, recipe), data, recipe, out / "checkpoint.pt", f"train {out.name}")
        if not leads():
            return {}
        run.save_network(arch, network.state_dict())
        found = {"val_distance": mean_distance(network, teacher.network, data)}
        summary = run.finish({**found, "weights": str(out / "weights.safetensors")})
        (out / "checkpoint.pt").unlink()
    return summary


def _following(teacher: Teacher, arch: Arch, recipe: Recipe) -> Objective:
    def losses(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        yield feature_distance(model(resized(images, arch.image_size)), teacher.scores(images, recipe, step))

    return losses


@torch.no_grad()
def mean_distance(network: Network, other: nn.Module, data: Data, split: Split = "val") -> float:
    """How far a network's features are from another's, see `compress.feature_distance`: the mean over a split's images, of the data's size."""
    network.eval()
    device = next(network.parameters()).device
    other.eval().to(device)
    found, seen = 0.0, 0
    for images, _ in data.loader(split, BATCH):
        images = images.to(device)
        own = network(resized(images, network.arch.image_size))
        found += len(images) * float(feature_distance(own, other(images)))
        seen += len(images)
    return found / seen
