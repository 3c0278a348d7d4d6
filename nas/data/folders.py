"""Folders of images: which files there are, of which class, and how they are split. Reads names only, no image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.data.base import SPLITS, Labels, Split
from nas.progress import track
from search_spaces.errors import InputError

__all__ = ["Files", "split_folder"]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
HOLDOUT, HOLDOUT_LARGE, LARGE = 0.10, 0.05, 100_000  # part of train that is held out; of a train folder this large
SHARE = 0.15  # of each class, for val and again for test, where a folder has no split of its own
SPLIT, ORDER = 1, 2  # what a generator is for
NAMED = 3  # differing classes that an error message names


@dataclass(frozen=True)
class Files:
    """Image files with their labels (N,)."""

    paths: tuple[str, ...]
    labels: Labels

    def at(self, indices: Labels) -> "Files":
        """The files at the indices, in that order."""
        return Files(tuple(self.paths[index] for index in indices), self.labels[indices])


def split_folder(root: Path, seed: int) -> tuple[tuple[str, ...], dict[Split, Files]]:
    """The class names in the order of their labels and the files of each split in its fixed order, which mixes the classes.

    See `nas.data.imagefolder` for the layouts.

    Raises:
        InputError: the folder is missing, fits no layout, or a class has no or too few images.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the one that holds train/ and val/, or a folder for each class")
    train, val, test = (root / name for name in SPLITS)
    if train.is_dir() and val.is_dir():
        classes, files = _scan(train)
        held = _same_classes(train, classes, val)
        if test.is_dir():
            splits: list[Files] = [files, held, _same_classes(train, classes, test)]
        else:
            share = HOLDOUT if len(files.labels) < LARGE else HOLDOUT_LARGE
            rest, chosen = _hold_out(files, classes, [share], seed)
            splits = [rest, chosen, held]
    elif train.is_dir() and _subfolders(train):
        raise InputError(f"{root} holds train/ but no val/; add it, or give {train} to have its images split")
    else:
        classes, files = _scan(root)
        splits = _hold_out(files, classes, [SHARE, SHARE], seed)
    mixed = [_mixed(part, [seed, ORDER, place]) for place, part in enumerate(splits)]
    return classes, dict(zip(SPLITS, mixed, strict=True))


def _mixed(files: Files, seed: list[int]) -> Files:
    """The files in random order."""
    return files.at(np.random.default_rng(seed).permutation(len(files.labels)))


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


def _hold_out(files: Files, classes: tuple[str, ...], shares: list[float], seed: int) -> list[Files]:
    """The rest of the files, then a part for each share; of every class each part has its share and at least one."""
    parts: list[list[Labels]] = [[] for _ in range(len(shares) + 1)]
    for label, name in enumerate(classes):
        indices = np.flatnonzero(files.labels == label)
        if len(indices) < len(parts):
            least = f"{len(parts)} are needed to split it"
            raise InputError(
                f"the class {name} (as {files.paths[indices[0]]}) has {len(indices)} images; {least}; add some"
            )
        indices = np.random.default_rng([seed, SPLIT, label]).permutation(indices)
        ends = np.cumsum([max(1, round(share * len(indices))) for share in shares])
        for part, chosen in zip([*parts[1:], parts[0]], np.split(indices, ends), strict=True):
            part.append(chosen)
    return [files.at(np.sort(np.concatenate(part))) for part in parts]
