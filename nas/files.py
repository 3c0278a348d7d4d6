"""Files that are either whole or absent, and where the user's cached files live."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from search_spaces.errors import InputError

__all__ = ["TEMPORARY", "atomic_path", "atomic_write", "cache_dir", "lock", "publish", "read_json", "write_json"]

TEMPORARY = ".tmp-"  # begins the name of what a killed process may leave behind


def cache_dir() -> Path:
    """The folder for data sets and latency tables that can be made again: `$NAS_CACHE`, else `~/.cache/nas`."""
    return Path(os.environ.get("NAS_CACHE") or Path.home() / ".cache" / "nas")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path`, on any failure nothing is left behind.

    Raises:
        InputError: the file cannot be written (disk full, no permission, a folder in its place).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # temporary files are private, what they become is not
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free the space or choose another --out") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free the space or choose another --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the content of `path` in one step.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)


def publish(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copy files that belong together into `folder`, each in one step; where they are there now.

    Of several the last is gone meanwhile, so that a kill leaves no file beside others that are not its own.

    Raises:
        InputError: the folder cannot be written.
    """
    places = [folder / file.name for file in files]
    if len(places) > 1:
        places[-1].unlink(missing_ok=True)
    for file, place in zip(files, places, strict=True):
        with atomic_path(place) as temporary:
            shutil.copyfile(file, temporary)
    return places


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: the file is missing or does not hold JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); restore or remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists without end
        raise InputError(
            f"{path} holds JSON with lists without end, or a number of thousands of digits; restore or remove it"
        ) from error


def lock(file: IO[Any], path: Path) -> None:
    """Keep every other process from locking the open `file` until it is closed; a kill unlocks too.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is at work in {path}; wait for it, or choose another --out") from error
