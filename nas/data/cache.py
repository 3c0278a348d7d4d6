"""Generated images on disk: one file a split, whole or absent, and checked by a stored checksum when read."""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nas.data.base import Labels
from nas.files import atomic_path
from search_spaces.errors import InputError

__all__ = ["Images", "cached"]

log = logging.getLogger(__name__)

CHECKSUM = "sha256"
CORRUPT = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Images:
    """The images of a split (N, 3, S, S), uint8, with their labels (N,) and, where the generator gives them, more.

    `groups` (N,) says what each image was made from, `difficulty` (N,) how hard it is, from 0 to 1.
    """

    pixels: npt.NDArray[np.uint8]
    labels: Labels
    groups: Labels | None = None
    difficulty: npt.NDArray[np.float32] | None = None


def cached(path: Path, make: Callable[[], Images]) -> Images:
    """The images in the file at `path`; made and written where there is none or its content fails the checksum.

    Two processes that find nothing both make the images, and either one's file is whole. Where the folder cannot be
    written, a warning says so and the images are made again next time.
    """
    if path.exists():
        try:
            return read(path)
        except CORRUPT as error:
            log.warning("%s is damaged (%s: %s): making it again", path, type(error).__name__, error)
    images = make()
    try:
        write(path, images)
    except InputError as error:
        log.warning("%s is not kept for the next run (NAS_CACHE names another folder): %s", path.name, error)
    return images


def read(path: Path) -> Images:
    """The images of a file.

    Raises:
        ValueError: the content does not have the stored checksum; or another of `CORRUPT`, as the damage has it.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    stored = str(arrays.pop(CHECKSUM))
    if digest(arrays) != stored:
        raise ValueError("its checksum does not match")
    return Images(arrays["pixels"], arrays["labels"], arrays.get("groups"), arrays.get("difficulty"))


def write(path: Path, images: Images) -> None:
    """Write the images and their checksum in one step.

    Raises:
        InputError: the file cannot be written.
    """
    values = {field.name: getattr(images, field.name) for field in fields(images)}
    arrays: Any = {name: value for name, value in values.items() if value is not None}
    arrays[CHECKSUM] = np.array(digest(arrays))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def digest(arrays: dict[str, npt.NDArray[np.generic]]) -> str:
    """SHA-256 over names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
