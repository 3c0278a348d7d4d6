"""Small published data sets that are on the disk already, as torchvision reads them; nothing is downloaded.

Only those are known whose files hold arrays or text. Others are refused, CIFAR first of all: torchvision unpickles its
files, and whoever made a pickle may run any program here. Their images can be given as a folder (`imagefolder:PATH`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.data.base import Data, Labels
from nas.data.cache import Images
from nas.data.folders import HOLDOUT
from nas.data.memory import EmbeddedData
from nas.files import cache_dir
from search_spaces.errors import InputError

__all__ = ["PARTS", "load"]

BY_FLAG: tuple[dict[str, Any], dict[str, Any]] = {"train": True}, {"train": False}
BY_NAME: tuple[dict[str, Any], dict[str, Any]] = {"split": "train"}, {"split": "test"}
PARTS = {  # how torchvision's class is asked for the training and for the test images
    "MNIST": BY_FLAG,
    "FashionMNIST": BY_FLAG,
    "KMNIST": BY_FLAG,
    "USPS": BY_FLAG,
    "SVHN": BY_NAME,
    "STL10": BY_NAME,
}
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, AssertionError, EOFError, LookupError)


def load(argument: str, image_size: int | None, seed: int) -> Data:
    """The data set of `NAME` or `NAME@ROOT`, in its own size unless another is asked for.

    `ROOT` is what torchvision calls so; without it, `torchvision` in the cache. 10% of the training images of every
    class, chosen by the seed, are the search-validation split.

    Raises:
        InputError: the data set is not among `PARTS`, or is not there.
    """
    name, at, folder = argument.partition("@")
    if name not in PARTS:
        raise InputError(
            f"no data set torchvision:{name}; there are {', '.join(PARTS)}; give others as folders: imagefolder:PATH"
        )
    if at and not folder:
        raise InputError(f"no folder follows the @ of torchvision:{name}@; write torchvision:{name}@FOLDER")
    root = Path(folder).expanduser() if at else cache_dir() / "torchvision"
    (known, labels, classes), (unseen, test_labels, _) = (_read(name, root, options) for options in PARTS[name])
    train, val = _hold_out(labels, seed)
    test = np.random.default_rng(seed).permutation(len(test_labels))
    return EmbeddedData(
        name=f"torchvision:{argument}",
        class_names=classes,
        image_size=image_size or known.shape[-1],
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        native_size=known.shape[-1],
        held={
            "train": Images(known[train], labels[train]),
            "val": Images(known[val], labels[val]),
            "test": Images(unseen[test], test_labels[test]),
        },
    )


def _read(name: str, root: Path, options: dict[str, Any]) -> tuple[Any, Labels, tuple[str, ...]]:
    """Pixels (N, 3, S, S), uint8, labels (N,) and the names of the classes of a part of a data set."""
    from torchvision import datasets

    try:
        found: Any = getattr(datasets, name)(root, download=False, **options)
    except UNREADABLE as error:
        raise InputError(
            f"{root} does not hold {name} whole, as torchvision stores it; put its files there, or name their folder: "
            f"torchvision:{name}@FOLDER"
        ) from error
    pixels = np.asarray(found.data)
    if pixels.ndim == 3:  # grey
        pixels = np.repeat(pixels[:, None], 3, axis=1)
    labels = torch.as_tensor(found.labels if hasattr(found, "labels") else found.targets).numpy().astype(np.int64)
    names = getattr(found, "classes", range(int(labels.max()) + 1))
    return pixels, labels, tuple(map(str, names))


def _hold_out(labels: Labels, seed: int) -> tuple[Labels, Labels]:
    """Indices of the images that stay in train, and of those for val, in random order."""
    from sklearn.model_selection import train_test_split

    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    train, val = train_test_split(np.arange(len(labels)), test_size=HOLDOUT, stratify=labels, random_state=state)
    return train, val
