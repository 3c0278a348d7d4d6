"""What can run a network: one file a runtime, imported when it is used; a new runtime is one line in `RUNTIMES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # imported lazily: naming a target must not wait for torch
    import numpy as np
    from numpy.typing import NDArray

    from nas.target import Target
    from search_spaces.arch import Arch

__all__ = ["RUNTIMES", "Runtime", "Session"]


class Session(Protocol):
    """A network, ready to run in eval mode."""

    @property
    def image_size(self) -> int:
        """Pixels of each side of the images it takes."""

    @property
    def classes(self) -> int:
        """Class scores it gives for an image."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (N, channels, H, W) -> logits (N, classes), in batches of its own size, the last one padded."""

    def reopen(self) -> None:
        """Load the network anew: where it lies in memory moves its time by a per cent or two."""

    def close(self) -> None:
        """Give its memory back; the next `time` or `run` loads it again."""

    def time(self, repeats: int, images: NDArray[np.float32] | None = None) -> list[float]:
        """Milliseconds of each of `repeats` runs, back to back, on a batch of the target's size; without `images`, a fixed one."""


@dataclass(frozen=True)
class Runtime:
    """A way to run networks: what it supports, and how to open one from an Arch or from a file that it reads."""

    package: str  # the distribution whose version goes into the fingerprint
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    from_arch: Callable[[Arch, Target], Session]
    from_file: Callable[[Path, Target], Session]
    prepare: Callable[[Arch, Target, Path], None]  # what is slow about `from_arch`, done by any process: writes a file
    from_prepared: Callable[[Path, Target, str], Session]  # that file, the target and the network's name


def _ort_arch(arch: Arch, target: Target) -> Session:
    from nas.runtimes import onnxruntime

    return onnxruntime.from_arch(arch, target)


def _ort_file(path: Path, target: Target) -> Session:
    from nas.runtimes import onnxruntime

    return onnxruntime.from_file(path, target)


def _ort_prepare(arch: Arch, target: Target, path: Path) -> None:
    from nas.runtimes import onnxruntime

    onnxruntime.prepare(arch, target, path)


def _ort_prepared(path: Path, target: Target, name: str) -> Session:
    from nas.runtimes import onnxruntime

    return onnxruntime.from_prepared(path, target, name)


RUNTIMES: dict[str, Runtime] = {
    "ort": Runtime("onnxruntime", ("cpu",), ("fp32",), _ort_arch, _ort_file, _ort_prepare, _ort_prepared)
}
