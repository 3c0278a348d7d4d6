"""Where a process keeps files that end with it: a folder of its own, which the next process removes if a kill left it behind."""

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from search_spaces.errors import InputError

__all__ = ["scratch_dir"]

LOCK = "lock"  # in each folder; whoever can lock it knows that the folder's process has ended


def scratch_dir() -> Path:
    """This process's folder for temporary files, in `$TMPDIR`, else `/tmp`; the first call removes those of ended processes.

    Raises:
        InputError: it cannot be made, or another user's folder is in its place.
    """
    return _own(os.getpid())


@cache
def _own(pid: int) -> Path:
    """The folder of the process `pid`, this one: a process forked from another has a folder of its own."""
    root = Path(tempfile.gettempdir()) / f"nas-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InputError(f"{root} is not this user's folder; remove it, or set TMPDIR to another")
        with (root / LOCK).open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # nobody sweeps while a new folder has no locked file yet
            _sweep(root)
            folder = Path(tempfile.mkdtemp(prefix=f"{pid}-", dir=root))
            held = (folder / LOCK).open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror}; free the space, or set TMPDIR") from error
    atexit.register(_leave, pid, folder, held)
    return folder


def _leave(pid: int, folder: Path, held: IO[str]) -> None:
    """Remove the folder when its process ends, not when one does that was forked from it."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
    held.close()


def _sweep(root: Path) -> None:
    """Remove the folders whose process has ended; the system has unlocked their files."""
    for folder in root.iterdir():
        if folder.is_dir() and not _locked(folder / LOCK):
            shutil.rmtree(folder, ignore_errors=True)  # what it cannot remove is for the next process to try


def _locked(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
