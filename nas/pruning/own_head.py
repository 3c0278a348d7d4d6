"""A classifier for classes of one's own, fitted on the features of a network that stays as it is (a linear probe)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data import Data, Split
from nas.data.loading import at_indices
from nas.evaluate import accuracy
from nas.progress import say, track
from nas.runs import Run
from nas.train.retrain import load_network
from search_spaces.arch import Network
from search_spaces.blocks.head import HeadModule
from search_spaces.errors import InputError

__all__ = ["check_labelled", "drawn", "with_own_head"]

TRAIN_IMAGES, VAL_IMAGES = 20_000, 5_000  # whose features are looked at, at most; more where there are more classes
STRENGTHS = (
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
)  # of the labels against the penalty; search-validation decides (arXiv 2103.00020, A.3)
STEPS = 1000  # of the solver, at most
BATCH = 250

Features = NDArray[np.float32]  # (images, channels)
Labels = NDArray[np.int64]


def check_labelled(data: Data) -> None:
    """Refuse training images by which a classifier cannot be fitted.

    Raises:
        InputError: a class has none.
    """
    lacking = sorted({*range(data.classes)} - {*data.labels("train").tolist()})
    if lacking:
        raise InputError(
            f"a classifier for {data.name} cannot be fitted: {len(lacking)} of its {data.classes} classes, such as "
            f"{data.class_names[lacking[0]]!r}, have no training images; add some or leave them out"
        )


def with_own_head(network: Network, data: Data, source: str, out: Path) -> Network:
    """The network with its classifier fitted to the data, all else as it is; a run folder keeps it, and is read where it is done.

    The classifier is a logistic regression on features of training images as they are. A distilled network has two, each
    fitted on the features of its own token.

    Args:
        network: with a classifier of the data's classes, whatever its weights.
        data: whose training split is fitted, and whose search-validation split chooses how strong the penalty is.
        source: names the weights that all else has.
        out: the run's folder.
    """
    run = Run.start(out, "retrain", {"arch": network.arch.id, "data": data.name, "features_of": source}, resume=True)
    with run.locked():
        if run.summary is None:
            say(f"fitting a classifier for the {data.classes} classes of {data.name} on the network's features")
            network = _fitted(network, data)
            run.save_network(network.arch, network.state_dict())
            run.finish({"val_acc": accuracy(network, data, "val"), "weights": str(out / "weights.safetensors")})
    return load_network(out)[0]


def _fitted(network: Network, data: Data) -> Network:
    train, labels = _features(network, data, "train", drawn(data.labels("train"), data.classes))
    held, wanted = _features(network, data, "val", np.arange(min(VAL_IMAGES, data.size("val"))))
    for layer, own, others in zip(_layers(network), train, held, strict=True):
        weight, bias = _best(own, labels, others, wanted)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return network


def drawn(labels: Labels, classes: int) -> Labels:
    """Which images to look at, by their labels (images,): half of them shared out evenly among the classes, the rest the first of all."""
    limit = max(TRAIN_IMAGES, classes)
    if len(labels) <= limit:
        return np.arange(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in range(classes):
        chosen[np.flatnonzero(labels == label)[: max(1, limit // (2 * classes))]] = True
    chosen[np.flatnonzero(~chosen)[: limit - chosen.sum()]] = True
    return np.flatnonzero(chosen)


def _layers(network: Network) -> list[nn.Linear]:
    """The classifiers, in the order in which they run."""
    head = network.blocks[-1]
    assert isinstance(head, HeadModule)
    found = [head.head, *([] if head.head_dist is None else [head.head_dist])]
    return [layer for layer in found if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _features(network: Network, data: Data, split: Split, indices: Labels) -> tuple[list[Features], Labels]:
    """What each classifier gets for the images at indices of a split, and their labels."""
    network.eval()
    device = next(network.parameters()).device
    labels: list[Tensor] = []
    loader = at_indices(data.loader(split, BATCH), indices)
    with _watched(_layers(network)) as seen:
        for images, own in track(loader, f"features of {split}", len(loader)):
            network(images.to(device))
            labels.append(own)
    return [torch.cat(parts).numpy() for parts in seen], torch.cat(labels).numpy()


@contextmanager
def _watched(layers: list[nn.Linear]) -> Iterator[list[list[Tensor]]]:
    """Meanwhile what goes into each layer is kept."""
    seen: list[list[Tensor]] = [[] for _ in layers]

    def keep(place: list[Tensor]) -> Any:
        return lambda module, given: place.append(given[0].float().cpu())

    handles = [layer.register_forward_pre_hook(keep(place)) for layer, place in zip(layers, seen, strict=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _best(train: Features, labels: Labels, held: Features, wanted: Labels) -> tuple[Features, Features]:
    """Weight (classes, channels) and bias (classes,) of the regression that is right most often on the images held out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    tried = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS)).fit(train, labels)
        for strength in STRENGTHS
    ]
    chosen = max(tried, key=lambda model: float(model.score(held, wanted)))
    scaler, found = chosen[0], chosen[-1]
    weight, bias = found.coef_ / scaler.scale_, found.intercept_
    bias = bias - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes the second alone has scores
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float32), bias.astype(np.float32)
