"""Progress on stderr with rate and time left, for everything that takes over two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from nas.processes import leads

__all__ = ["progress", "say", "track"]

T = TypeVar("T")

SILENT_SECONDS = 2.0  # work shorter than this shows nothing


def say(message: str) -> None:
    """One line on stderr, from the first of several processes."""
    if leads():
        tqdm.write(message, file=sys.stderr)


def progress(description: str, total: int, done: int = 0) -> "tqdm[int]":
    """A bar to `update()` by hand, a context manager; `done` steps were finished by an earlier run."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        delay=SILENT_SECONDS,
        mininterval=interval,
        file=sys.stderr,
        disable=not leads(),
    )


def track(iterable: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items of `iterable`, showing progress on the way."""
    with progress(description, total) as bar:
        for item in iterable:
            yield item
            bar.update()
