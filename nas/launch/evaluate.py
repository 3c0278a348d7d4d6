"""`nas evaluate`, from a name to accuracy and milliseconds per image."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.cascade.files import are_exits, open_exits
from nas.cascade.running import BATCH as EXITS_AT_ONCE
from nas.data import load as load_data
from nas.data import load_for, split_named
from nas.formats import is_exported, normalisation_of, open_exported
from nas.networks import network_named, renormalised
from search_spaces.arch import Network
from search_spaces.cascade import Cascade
from search_spaces.errors import InputError
from search_spaces.prepack import prepack
from search_spaces.zoo.released import Normalisation

__all__ = ["evaluate_network"]

IMAGES_AT_ONCE = 250  # of an evaluation


def evaluate_network(
    name: str,
    dataset: str,
    split: str,
    limit: int | None,
    *,
    weights: Path | None = None,
    budget_ms: float | None = None,
) -> dict[str, Any]:
    """`nas evaluate`: accuracy of a run, a checkpoint, an exported file or a folder of a cascade's, and milliseconds per image, those of loading left out.

    A cascade runs whole: `acc` is its last exit's, and `exits` has that of each.

    Raises:
        InputError: no such network or split, or the data has another number of classes.
    """
    chosen = split_named(split)
    taken: Normalisation | None = None  # images as a file takes them
    size = IMAGES_AT_ONCE
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    if is_exported(name) or are_exits(Path(name)):
        if weights is not None:
            raise InputError(f"{name} holds its weights; leave out --weights")
        if budget_ms is not None:
            raise InputError(f"--budget-ms chooses a winner of a search run, and {name} is none; leave it out")
        session = open_exported(Path(name)) if is_exported(name) else open_exits(Path(name))
        taken = normalisation_of(Path(name)) if is_exported(name) else None
        classes, image_size, channels, run = session.classes, session.image_size, session.channels, session.run
    else:
        named = network_named(name, budget_ms, weights, cascades=True)
        if named.network is None and named.supernet is None:
            raise InputError(f"{name} has no weights to evaluate; give a run, a checkpoint, or --weights FILE")
        named = named.seeing(load_data(dataset, image_size=named.arch.image_size))
        network = named.with_weights(seed=0)
        size = EXITS_AT_ONCE if isinstance(named.arch, Cascade) else size
        arch, run = named.arch, _eager(network)
        classes, image_size, channels = arch.classes, arch.image_size, arch.channels
    data = load_for(name, dataset, image_size, classes, channels)
    hits: Any = 0  # (exits,)
    seconds = 0.0
    count = min(limit or data.size(chosen), data.size(chosen))
    for images, labels in data.loader(chosen, size, limit=limit):
        given = renormalised(images, data, taken).numpy()
        started = time.perf_counter()
        found = run(given)
        seconds += time.perf_counter() - started
        hits += (found.reshape(len(found), -1, classes).argmax(2) == labels.numpy()[:, None]).sum(0)
    accs = (hits / count).tolist()
    exits = {"exits": [{"acc": acc} for acc in accs]} if len(accs) > 1 else {}
    return {"acc": accs[-1], "images": count, "ms_per_image": 1000 * seconds / count, **exits}


def _eager(network: Network) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Images -> logits (N, classes), or those of a cascade's exits (N, exits, classes)."""
    packed = prepack(network)

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found = packed(torch.from_numpy(images))
        logits: NDArray[np.float32] = (torch.stack(found, 1) if isinstance(found, list) else found).numpy()
        return logits

    return run
