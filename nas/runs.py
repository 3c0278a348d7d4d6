"""A run's folder: config, append-only records and artifacts, whole after a kill at any moment."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.files import TEMPORARY, atomic_write, lock, read_json, write_json
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["Run", "digest", "load_weights", "read_arch", "save_weights"]

CONFIG, RECORDS, SUMMARY, ARCH, WEIGHTS = (
    "config.json",
    "records.jsonl",
    "summary.json",
    "arch.json",
    "weights.safetensors",
)


class Run:
    """A folder with `config.json`, `records.jsonl`, `summary.json` at the end, and artifacts.

    The config is written first and `summary.json` last, so a folder tells how far its run got.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Wrap a folder that exists; use `start` or `open`."""
        self.path, self.config = path, config

    @classmethod
    def start(cls, path: Path, kind: str, config: dict[str, Any], *, resume: bool) -> "Run":
        """A new run of `kind`, or with `resume` the one that was begun there with the same config.

        Raises:
            InputError: the folder holds a run and `resume` is off, or it holds another run.
        """
        config = json.loads(json.dumps({"kind": kind, **config}))  # as it is read back: a tuple is a list there
        cls.check_free(path, resume=resume)
        if not (path / CONFIG).exists():
            write_json(path / CONFIG, config)
            return cls(path, config)
        found = _config(path)
        differing = sorted(name for name in {*config, *found} if config.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{path} holds a run with {name} = {found.get(name)!r}, not {config.get(name)!r}; choose another --out"
            )
        return cls(path, config)

    @staticmethod
    def check_free(path: Path, *, resume: bool) -> None:
        """Refuse a folder that no run can be started in, or with `resume` gone on with; a run of another config is `start`'s to refuse.

        Raises:
            InputError: it holds a run and `resume` is off, or something else.
        """
        if (path / CONFIG).exists():
            if not resume:
                raise InputError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")
        elif path.is_file() or (path.is_dir() and any(not one.name.startswith(TEMPORARY) for one in path.iterdir())):
            raise InputError(f"{path} is not empty and holds no run; choose another --out")

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> "Run":
        """A run that exists.

        Raises:
            InputError: no run there, or one of another kind.
        """
        if not (path / CONFIG).is_file():
            raise InputError(f"{path} holds no run (no {CONFIG}); give the folder that --out named")
        config = _config(path)
        if kind is not None and config["kind"] != kind:
            raise InputError(f"{path} is not a {kind} run; give the folder that `nas {kind}` wrote")
        return cls(path, config)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Work in the folder alone, free of what a killed process left half-written.

        Raises:
            InputError: another process is at work there.
        """
        with (self.path / CONFIG).open("rb") as file:
            lock(file, self.path)
            for left in self.path.glob(f"{TEMPORARY}*"):
                left.unlink()
            yield

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run came to; None while it is unfinished."""
        path = self.path / SUMMARY
        if not path.exists():
            return None
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError(f"{path} is damaged; remove it and add --resume")
        return value

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the summary, which marks the run as done, and give it back."""
        write_json(self.path / SUMMARY, summary)
        return summary

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; it is on the disk when this returns."""
        try:
            with (self.path / RECORDS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"cannot write {self.path / RECORDS}: {error.strerror}; free the space and add --resume"
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a last line that a kill cut short is removed from the file.

        Raises:
            InputError: a line other than the last is damaged.
        """
        path = self.path / RECORDS
        if not path.exists():
            return []
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error.msg}); remove the run and start again") from error

    def save_network(self, arch: Arch, weights: dict[str, Any]) -> None:
        """Write `weights.safetensors`, which says of what network they are, and `arch.json`."""
        save_weights(self.path / WEIGHTS, weights, arch)
        write_json(self.path / ARCH, json.loads(arch.to_json()))

    def arch(self) -> Arch:
        """The network that the run holds.

        Raises:
            InputError: there is none.
        """
        if not (self.path / ARCH).exists() and self.summary is None:
            raise InputError(f"the run in {self.path} is unfinished; go on with --resume")
        return read_arch(self.path / ARCH)

    def weights(self) -> dict[str, Any]:
        """The weights that the run holds."""
        return load_weights(self.path / WEIGHTS)


def _config(path: Path) -> dict[str, Any]:
    """The config of the run in a folder.

    Raises:
        InputError: it is damaged, or another program's.
    """
    found = read_json(path / CONFIG)
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise InputError(
            f"{path / CONFIG} is of no run; choose another folder, or name a model of Hugging Face as hf:FOLDER"
        )
    return found


def read_arch(path: Path) -> Arch:
    """The network in an architecture file.

    Raises:
        InputError: the file is missing or does not describe a network.
    """
    try:
        return Arch.from_json(json.dumps(read_json(path)))
    except InputError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from error


def save_weights(path: Path, weights: dict[str, Any], arch: Arch | None = None) -> None:
    """Write tensors as safetensors, atomically; with the network that they are of, the file loads by itself."""
    from safetensors.torch import save

    about = None if arch is None else {"arch": arch.to_json()}
    atomic_write(path, save({name: tensor.detach().contiguous() for name, tensor in weights.items()}, about))


def load_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file.

    Raises:
        InputError: missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path} does not exist; the run may be unfinished: go on with --resume")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); train again or restore it") from error


def digest(weights: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any value of the tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
