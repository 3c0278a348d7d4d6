"""What can run a network: one file a runtime, imported when it is used; a new runtime is one line in `RUNTIMES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from search_spaces.errors import InputError

if TYPE_CHECKING:  # imported lazily: naming a target must not wait for torch
    import numpy as np
    from numpy.typing import NDArray

    from nas.target import Target
    from search_spaces.arch import Arch

__all__ = ["RUNTIMES", "Runtime", "Session"]


class Session(Protocol):
    """A network, ready to run in eval mode."""

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""

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
    """A way to run networks: what it supports, and the module of `nas.runtimes` with the functions that are its methods here."""

    module: str
    package: str  # the distribution that it needs, whose version goes into the fingerprint
    extra: str | None  # of this project, which brings the package; None where every installation has it
    dtypes: Mapping[str, tuple[str, ...]]  # by device
    files: tuple[str, ...] = ()  # suffixes of the files it opens
    thresholds: bool = True  # whether it runs networks whose shapes depend on the image
    processes: tuple[str, ...] = ("cpu",)  # devices for which preparing in several processes pays

    def lacks(self, device: str) -> str | None:
        """What this machine must be given before it can measure on the device, in a line; None where nothing is missing."""
        try:
            version(self.package)
        except PackageNotFoundError:
            extra = f"vit-nas[{self.extra}]" if self.extra else self.package
            return f'{self.package} is not installed; pip install "{extra}"'
        found: str | None = self._imported().lacks(device)
        return found

    def from_arch(self, arch: Arch, target: Target) -> Session:
        """A session of a network with fixed random weights; thresholds are such that its fixed input keeps `keep` patches.

        Raises:
            InputError: a network with thresholds, which takes images one by one, on a target with a larger batch.
        """
        session: Session = self._imported().from_arch(arch, target)
        return session

    def from_file(self, path: Path, target: Target) -> Session:
        """A session of a file that it reads.

        Raises:
            InputError: the file is missing, not a network that it loads, or has another batch size.
        """
        if path.suffix not in self.files:
            reads = f"reads {', '.join(self.files)}" if self.files else "reads no files"
            raise InputError(
                f"{target.name} {reads}, and {path} is none; time an architecture, or choose another target"
            )
        session: Session = self._imported().from_file(path, target)
        return session

    def prepare(self, arch: Arch, target: Target, path: Path) -> None:
        """Do what is slow about `from_arch`, in any process: write a file.

        Raises:
            InputError: as `from_arch`.
        """
        self._imported().prepare(arch, target, path)

    def from_prepared(self, path: Path, target: Target, arch: Arch) -> Session:
        """A session of the file that `prepare` wrote, which it takes to itself."""
        session: Session = self._imported().from_prepared(path, target, arch)
        return session

    def _imported(self) -> Any:
        return import_module(self.module)


FLOATS, WEIGHTS = ("fp32", "bf16"), (".safetensors",)  # of the runtimes of torch

RUNTIMES: dict[str, Runtime] = {
    "ort": Runtime("nas.runtimes.onnxruntime", "onnxruntime", None, {"cpu": ("fp32", "int8")}, (".onnx",)),
    "openvino": Runtime(
        "nas.runtimes.openvino", "openvino", "openvino", {"cpu": ("fp32", "int8")}, (".onnx", ".xml"), thresholds=False
    ),
    "eager": Runtime(
        "nas.runtimes.eager", "torch", None, {"cpu": FLOATS, "cuda": FLOATS}, (*WEIGHTS, ".pt2"), processes=()
    ),
    "compiled": Runtime(
        "nas.runtimes.compiled", "torch", None, {"cpu": ("fp32",), "cuda": FLOATS}, WEIGHTS, thresholds=False
    ),
    "graph": Runtime("nas.runtimes.graph", "torch", None, {"cuda": FLOATS}, WEIGHTS, thresholds=False, processes=()),
}
