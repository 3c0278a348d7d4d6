"""Every visit of a measurement, appended to a file when it is made: the evidence, and what a killed run resumes from.

A file holds one section a measurement: a header line, a line a visit, and an end line once the table is written.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from nas.files import lock
from nas.visits import Visit
from search_spaces.errors import InputError

__all__ = ["Samples", "finish_section", "visit_json", "visit_of"]

VISIT = {"s", "r", "o", "n", "t", "ms"}  # segment, round, order, network, time of day, runs
SYNC_EVERY = 20  # visits between two forced writes to the disk; a killed process loses none, a power cut these


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def visit_json(visit: Visit) -> dict[str, Any]:
    """A visit as a JSON object."""
    place = {"s": visit.segment, "r": visit.round, "o": visit.order}
    return {**place, "n": visit.network, "t": visit.at, "ms": visit.runs, **({"apart": True} if visit.apart else {})}


def visit_of(value: dict[str, Any]) -> Visit:
    """The visit of a JSON object."""
    return Visit(
        value["s"], value["r"], value["o"], value["n"], value["t"], tuple(value["ms"]), value.get("apart", False)
    )


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    """The lines of a file as objects; what follows the last line end is a torn line and is left out."""
    values = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} is damaged at line {number}; remove it and measure again") from error
        if not isinstance(value, dict) or not (VISIT <= value.keys() or {"header", "end"} & value.keys()):
            raise InputError(f"{path} is damaged at line {number}; remove it and measure again")
        values.append(value)
    return values


def finish_section(path: Path, about: dict[str, Any], before: Callable[[], None]) -> None:
    """Mark the last section as finished if its header agrees with `about`: its table is there, a kill took the end line.

    `before` is called before that, while no other process can be at work on the table.
    """
    if not path.exists():
        return
    values = _parse(path, path.read_bytes())
    headers = [value["header"] for value in values if "header" in value]
    if headers and "end" not in values[-1] and about.items() <= headers[-1].items():
        with Samples(path, headers[-1], resume=True) as samples:
            before()
            samples.finish()


class Samples:
    """The samples file of one measurement, a context manager; `done` holds the visits of the run that is resumed."""

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool, fresh: bool = False) -> None:
        """Open a new section, or the unfinished one.

        Args:
            path: the file; it need not exist.
            header: all that decides what is measured; JSON values.
            resume: go on with an unfinished section, if there is one.
            fresh: drop what the file holds.

        Raises:
            InputError: the last section is unfinished and `resume` is off, or it belongs to another measurement, or the
                file is damaged or cannot be written.
        """
        self.path = path
        self.done: list[Visit] = []
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        try:
            self._start(header, resume, fresh)
        except BaseException:
            self._file.close()
            raise

    def _start(self, header: dict[str, Any], resume: bool, fresh: bool) -> None:
        path = self.path
        lock(self._file, path)
        content = b"" if fresh else path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        values = _parse(path, whole)
        starts = [i for i, value in enumerate(values) if "header" in value]
        unfinished = bool(starts) and "end" not in values[-1]
        if unfinished and not resume:
            raise InputError(f"{path} holds an unfinished measurement; pass --resume to go on with it, or remove it")
        if unfinished:
            self._check(values[starts[-1]]["header"], header)
            self.done = [visit_of(value) for value in values[starts[-1] + 1 :]]
        self._pending = 0
        with self._writing():
            self._file.truncate(len(whole))
        if not unfinished:
            self._write({"header": header}, force=True)

    def _check(self, found: Any, header: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(header))
        keys = found.keys() | wanted.keys() if isinstance(found, dict) else {"header"}
        differing = sorted(key for key in keys if not isinstance(found, dict) or found.get(key) != wanted.get(key))
        if differing:
            what = ", ".join(differing)
            raise InputError(f"{self.path} is of another measurement ({what} differ); remove it and measure again")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            mend = "free the space or choose another --out, and run it again, with --resume where the command has that"
            raise InputError(f"cannot write {self.path}: {error.strerror}; {mend}") from error

    def _write(self, value: dict[str, Any], force: bool) -> None:
        with self._writing():
            self._file.write(_line(value))
            self._pending += 1
            if force or self._pending >= SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._pending = 0

    def append(self, visit: Visit) -> None:
        """Write a visit."""
        self._write(visit_json(visit), force=False)

    def finish(self) -> None:
        """Mark the section as finished: its table is written."""
        self._write({"end": True}, force=True)

    def __enter__(self) -> "Samples":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
