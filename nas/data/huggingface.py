"""Image classification data sets of Hugging Face's hub, or of a folder, as the package `datasets` loads them.

Splits of `hf:NAME`, by what the data set's own are called (`train`; `validation`, `valid`, `val` or `dev`; `test`):

- All three: the splits as they are named.
- `train` and one other: **that is the test split**, and the search-validation split is held out of `train`: of every class 10% (5% from
  100,000 images on), chosen by the seed. So it is where labels of `test` are withheld (-1), as those of ImageNet are.
- One alone: 70% train, 15% search-validation, 15% test of every class, chosen by the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image

from nas.data.base import SPLITS, Labels, Split
from nas.data.folders import SHARE, divided, held_share, mixed
from nas.data.pictures import IMAGENET_MEAN, IMAGENET_STD, UNREADABLE, PictureData, as_rgb, unreadable
from nas.progress import say
from search_spaces.errors import InputError

__all__ = ["HuggingFaceData", "Places", "load", "places"]

TRAIN, TEST = "train", "test"
VALIDATION = ("validation", "valid", "val", "dev")
LABEL = "label"  # the column that is meant where several hold classes
REASON = 200  # characters of the package's own message that an error repeats

Rows = Sequence[Mapping[str, Any]]
"""One split as the package has it: row by row, its images decoded by Pillow."""


@dataclass(frozen=True)
class Places:
    """Where the images of a split are, in its fixed order."""

    source: str  # the data set's own split
    rows: Labels  # (N,)
    labels: Labels  # (N,)


@dataclass(frozen=True, eq=False)
class HuggingFaceData(PictureData):
    """Images of a data set that the package `datasets` keeps on the disk."""

    column: str  # that holds the images
    rows: Mapping[str, Rows]  # by the data set's own splits
    places: Mapping[Split, Places]

    def labels(self, split: Split) -> Labels:
        """Class indices (N,) in the fixed order."""
        return self.places[split].labels

    def picture(self, split: Split, index: int) -> Image.Image:
        place = self.places[split]
        row = int(place.rows[index])
        try:
            return as_rgb(self.rows[place.source][row][self.column])
        except UNREADABLE as error:
            raise unreadable(f"row {row} of {place.source} of {self.name}", error) from error


def load(argument: str, image_size: int | None, seed: int) -> HuggingFaceData:
    """The data set of `NAME`, or `NAME@COLUMN` where several columns hold classes, at 224 pixels unless said otherwise.

    `NAME` is that of the hub, whose data sets are fetched into the package's cache when they are not there, or a folder.

    Raises:
        InputError: the package is not installed, the data set cannot be had, it has not one column of images and one of classes, its
            splits are called otherwise, or a class has too few images.
    """
    whole = Path(argument).expanduser().is_dir()  # such as folder@2
    name, _, column = (argument, "", "") if whole else argument.partition("@")
    found, image, label = _read(name, column)
    names = tuple(next(iter(found.values())).features[label].names)
    labels = {split: np.asarray(rows.select_columns([label])[:][label], np.int64) for split, rows in found.items()}
    return HuggingFaceData(
        name=f"hf:{argument}",
        class_names=names,
        image_size=image_size or 224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        column=image,
        rows={split: rows.select_columns([image]) for split, rows in found.items()},
        places=places(f"hf:{argument}", labels, names, seed),
    )


def places(name: str, labels: Mapping[str, Labels], names: Sequence[str], seed: int) -> dict[Split, Places]:
    """Which rows are the images of each split, in its fixed order, which mixes the classes.

    Args:
        name: what messages call the data set.
        labels: of each of its own splits, (rows,).
        names: of the classes.
        seed: chooses what is held out, and the order.

    Raises:
        InputError: its splits are called otherwise, labels are missing, or a class has too few images.
    """
    own = _own_splits(name, labels)
    named = {label: f"the class {text} of {name}" for label, text in enumerate(names)}
    shares = {1: [SHARE, SHARE], 2: [held_share(len(labels[own[0]]))], 3: []}[len(own)]
    first = divided(labels[own[0]], named, shares, seed)
    parts = [(own[0], rows) for rows in first] + [(source, np.arange(len(labels[source]))) for source in own[1:]]
    ordered = [(source, rows[mixed(len(rows), number, seed)]) for number, (source, rows) in enumerate(parts)]
    return {
        split: Places(source, rows, labels[source][rows]) for split, (source, rows) in zip(SPLITS, ordered, strict=True)
    }


def _own_splits(name: str, labels: Mapping[str, Labels]) -> list[str]:
    """The data set's own splits that ours are made of: one that is divided, or train and one or two others that have labels."""
    labelled = [split for split in labels if (labels[split] >= 0).all()]
    known = [split for split in (TRAIN, *VALIDATION, TEST) if split in labelled]
    own = labelled if len(labelled) == 1 else known
    if not own or len(own) > 3 or (len(own) > 1 and own[0] != TRAIN):
        raise InputError(
            f"{name} has labels in its splits {_listed(labelled)}, of {_listed([*labels])}; {TRAIN} is needed, with one of "
            f"{', '.join(VALIDATION)}, with {TEST}, or with both; give its images as folders: imagefolder:PATH"
        )
    left = [split for split in labels if split not in own]
    if left:
        say(f"{name}: left out {_listed(left)}, whose labels are withheld, or which is no split of ours")
    return own


def _read(name: str, column: str) -> tuple[Mapping[str, Any], str, str]:
    """The data set's splits, and its columns of images and of classes."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(f'hf:{name} needs datasets, which is not installed; pip install "vit-nas[hf]"') from error
    try:
        found: Mapping[str, Any] = datasets.load_dataset(str(Path(name).expanduser()) if name.startswith("~") else name)
    except Exception as error:  # the hub's client raises a dozen unrelated types for a missing network or file
        reason = shorten(str(error) or type(error).__name__, REASON)
        raise InputError(
            f"hf:{name} cannot be had ({reason}); check the name, connect to the internet, or give a folder: hf:./FOLDER"
        ) from error
    features = next(iter(found.values())).features
    images = [one for one, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [one for one, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    chosen = [one for one in classes if one == (column or LABEL)] or ([] if column else classes)
    if len(images) != 1 or len(chosen) != 1:
        raise InputError(
            f"hf:{name} has the columns of images {_listed(images)} and of classes {_listed(classes)}; one of images is needed, and one of "
            f"classes, which hf:NAME@COLUMN chooses"
        )
    return found, images[0], chosen[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
