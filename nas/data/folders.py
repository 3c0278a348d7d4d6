"""Folders of images: which files there are, of which class if any, and how they are split. Reads names only, no image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.data.base import SPLITS, Labels, Split
from nas.progress import track
from search_spaces.errors import InputError

__all__ = ["SHARE", "Files", "divided", "held_share", "mixed", "split_folder"]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
HOLDOUT, HOLDOUT_LARGE, LARGE = 0.10, 0.05, 100_000  # part of train that is held out; of a train folder this large
SHARE = 0.15  # of each class, for val and again for test, where a folder has no split of its own
SPLIT, ORDER = 1, 2  # what a generator is for
NAMED = 3  # differing classes that an error message names
NONE = -1  # label of an image that has none


@dataclass(frozen=True)
class Files:
    """Image files with their labels (N,), which are -1 where there are none."""

    paths: tuple[str, ...]
    labels: Labels

    def at(self, indices: Labels) -> "Files":
        """The files at the indices, in that order."""
        return Files(tuple(self.paths[index] for index in indices), self.labels[indices])


def split_folder(root: Path, seed: int) -> tuple[tuple[str, ...], dict[Split, Files]]:
    """The class names in the order of their labels and the files of each split in its fixed order, which mixes the classes.

    See `nas.data.imagefolder` for the layouts. Of images without classes there are no names.

    Raises:
        InputError: the folder is missing, fits no layout, a class has no or too few images, or there are too few without classes.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the one that holds train/ and val/, or a folder for each class")
    train, val, test = (root / name for name in SPLITS)
    classes: tuple[str, ...] = ()
    if train.is_dir() and val.is_dir():
        own = [train, val, *([test] if test.is_dir() else [])]
        if all(_flat(folder) for folder in own):
            named, scanned = {NONE: f"{train}"}, [_unlabelled(folder) for folder in own]
        else:
            classes, files = _scan(train)
            named, scanned = _named(classes), [files, *(_same_classes(train, classes, folder) for folder in own[1:])]
        splits = scanned if test.is_dir() else [*_held_out(scanned[0], named, seed), scanned[1]]
    elif _flat(root):
        splits = _hold_out(_unlabelled(root), {NONE: f"{root}"}, [SHARE, SHARE], seed)
    elif train.is_dir() and _subfolders(train):
        raise InputError(f"{root} holds train/ but no val/; add it, or give {train} to have its images split")
    else:
        classes, files = _scan(root)
        splits = _hold_out(files, _named(classes), [SHARE, SHARE], seed)
    ordered = [part.at(mixed(len(part.labels), place, seed)) for place, part in enumerate(splits)]
    return classes, dict(zip(SPLITS, ordered, strict=True))


def _flat(folder: Path) -> bool:
    """Whether a folder holds images and no folders, so that they have no classes."""
    return not _subfolders(folder) and bool(_direct(folder))


def _direct(folder: Path) -> list[str]:
    """The image files that lie in a folder itself, sorted."""
    return sorted(str(path) for path in folder.glob("[!.]*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def _unlabelled(folder: Path) -> Files:
    """The images of a folder without classes."""
    paths = _direct(folder)
    return Files(tuple(paths), np.full(len(paths), NONE))


def _named(classes: tuple[str, ...]) -> dict[int, str]:
    """What messages call the images of each label."""
    return {label: f"the class {name}" for label, name in enumerate(classes)}


def _held_out(train: Files, named: Mapping[int, str], seed: int) -> list[Files]:
    """The training images but for those of search-validation, and these."""
    return _hold_out(train, named, [held_share(len(train.labels))], seed)


def held_share(images: int) -> float:
    """Of so many training images, the share that is held out for search-validation."""
    return HOLDOUT if images < LARGE else HOLDOUT_LARGE


def mixed(count: int, place: int, seed: int) -> Labels:
    """The random order (count,) of the images of a split, by its place among `SPLITS`."""
    return np.random.default_rng([seed, ORDER, place]).permutation(count)


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name as torchvision and timm have them; by number where all names are whole numbers."""
    found = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    numbers = all(entry.name.isdecimal() for entry in found)
    return sorted(found, key=lambda entry: int(entry.name)) if numbers else found


def _scan(folder: Path) -> tuple[tuple[str, ...], Files]:
    """The classes and the image files of a folder with a folder for each class, in order."""
    folders = _subfolders(folder)
    found = [_images(each) for each in track(folders, f"listing {folder}", len(folders))]
    if not any(found):
        raise InputError(f"{folder} has no images; put a folder for each class in it with .jpg, .png, … files")
    for each, paths in zip(folders, found, strict=True):
        if not paths:
            raise InputError(f"the class folder {each} has no images; add some or remove it")
    if len(folders) < 2:
        raise InputError(f"{folder} has only the class {folders[0].name}; at least 2 class folders are needed")
    labels = np.repeat(np.arange(len(folders)), [len(paths) for paths in found])
    return tuple(each.name for each in folders), Files(tuple(path for paths in found for path in paths), labels)


def _images(folder: Path) -> list[str]:
    """The image files in a class folder and the folders inside it, sorted."""
    return sorted(str(path) for path in folder.rglob("[!.]*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def _same_classes(train: Path, classes: tuple[str, ...], folder: Path) -> Files:
    """The files of another split, which must have the classes of train."""
    names, files = _scan(folder)
    if names != classes:
        only = {train: set(classes) - set(names), folder: set(names) - set(classes)}
        named = "; ".join(f"{_some(sorted(some))} only in {where}" for where, some in only.items() if some)
        raise InputError(f"{train.name} and {folder.name} have different classes: {named}; make their folders agree")
    return files


def _some(names: list[str]) -> str:
    """The names, or the first few and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _hold_out(files: Files, named: Mapping[int, str], shares: list[float], seed: int) -> list[Files]:
    """The rest of the files, then a part for each share; see `divided`."""
    found = {
        label: f"{name} (as {files.paths[int(np.argmax(files.labels == label))]})" for label, name in named.items()
    }
    return [files.at(part) for part in divided(files.labels, found, shares, seed)]


def divided(labels: Labels, named: Mapping[int, str], shares: list[float], seed: int) -> list[Labels]:
    """Of images with these labels (N,), the indices of the rest and then of a part for each share, ascending; of every label each part has its share and at least one.

    Args:
        labels: of which some may have no images.
        named: what messages call the images of each label.
        shares: of the images of each label, for all parts but the first.
        seed: chooses them.

    Raises:
        InputError: a label has images, but not one for each part.
    """
    parts: list[list[Labels]] = [[] for _ in range(len(shares) + 1)]
    for place, (label, name) in enumerate(named.items()):
        indices = np.flatnonzero(labels == label)
        if 0 < len(indices) < len(parts):
            least = f"{len(parts)} are needed to split it"
            raise InputError(f"{name} has {len(indices)} images; {least}; add some")
        indices = np.random.default_rng([seed, SPLIT, place]).permutation(indices)
        ends = np.cumsum([max(1, round(share * len(indices))) for share in shares])
        for part, chosen in zip([*parts[1:], parts[0]], np.split(indices, ends), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]
