"""torch without a compiler, operator by operator, on a CPU or a CUDA GPU."""

from pathlib import Path

from nas.runtimes.program import SUFFIX, read_program
from nas.runtimes.torch_session import Session, file_network, lacks_cuda, prepared_network, save, timed_network
from nas.target import Target
from search_spaces.arch import Arch

__all__ = ["from_arch", "from_file", "from_prepared", "lacks", "prepare"]


def lacks(device: str) -> str | None:
    """What a machine with torch lacks to run on the device."""
    return lacks_cuda() if device == "cuda" else None


def from_arch(arch: Arch, target: Target) -> Session:
    """A session of a network with fixed random weights; see `timed_network`."""
    return Session(timed_network(arch, target), target)


def from_file(path: Path, target: Target) -> Session:
    """A session of a file of weights, see `file_network`, or of a program of torch.export, see `read_program`."""
    return Session(read_program(path, target) if path.suffix == SUFFIX else file_network(path, target), target)


def prepare(arch: Arch, target: Target, path: Path) -> None:
    """Write the weights of `from_arch`."""
    save(timed_network(arch, target), path)


def from_prepared(path: Path, target: Target, arch: Arch) -> Session:
    """A session of the weights that `prepare` wrote, which it takes to itself."""
    return Session(prepared_network(path, arch), target)
