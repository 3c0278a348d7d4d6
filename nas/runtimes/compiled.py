"""torch.compile, on a CPU or a CUDA GPU."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor

from nas.runtimes.torch_session import (
    Forward,
    Session,
    conditions,
    file_network,
    lacks_cuda,
    prepared_network,
    save,
    timed_network,
)
from nas.target import Target
from search_spaces.arch import Arch, Network

__all__ = ["CompiledSession", "from_arch", "from_file", "from_prepared", "lacks", "prepare"]


def lacks(device: str) -> str | None:
    """What a machine with torch lacks to compile for the device."""
    return _lacks_triton() if device == "cuda" else _lacks_compiler()


def _lacks_compiler() -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler and finds no {compiler}; install g++, or name another in CXX"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"torch.compile needs Python's headers and finds no {header}; install python3-dev"
    return None


def _lacks_triton() -> str | None:
    lacking = lacks_cuda()
    if lacking is not None:
        return lacking
    if find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU; pip install triton"
    if shutil.which(os.environ.get("CC", "gcc")) is None and shutil.which("clang") is None:
        return "Triton needs a C compiler; install gcc, or name another in CC"
    return None


def from_arch(arch: Arch, target: Target) -> "CompiledSession":
    """A session of a network with fixed random weights; see `timed_network`."""
    return CompiledSession(timed_network(arch, target), target)


def from_file(path: Path, target: Target) -> "CompiledSession":
    """A session of a file of weights; see `file_network`."""
    return CompiledSession(file_network(path, target), target)


def prepare(arch: Arch, target: Target, path: Path) -> None:
    """Write the weights of `from_arch`, and leave its compiled code in the cache that torch keeps for all processes."""
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=1):  # other cores prepare other networks
        network = timed_network(arch, target)
        CompiledSession(network, target)
    save(network, path)


def from_prepared(path: Path, target: Target, arch: Arch) -> "CompiledSession":
    """A session of the weights that `prepare` wrote, which it takes to itself; torch finds its code in the cache."""
    return CompiledSession(prepared_network(path, arch), target)


class CompiledSession(Session):
    """A network that is compiled once, for its shapes alone; weights that are loaded anew find their code as it was."""

    def __init__(self, network: Network, target: Target) -> None:
        """Compile the network, of the target's type, and take it to itself.

        Raises:
            InputError: this machine cannot measure the target.
        """
        super().__init__(network, target)
        self._compiled: Forward = torch.compile(_own_function(network), fullgraph=True, dynamic=False)
        with conditions(target):
            self._compiled(self._placed(self._images))

    def _started(self) -> Forward:
        return self._compiled


def _own_function(network: Network) -> Forward:
    """The network as a function with code of its own: of one code object torch keeps eight compiled forms at most."""

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits

    code = forward.__code__.replace(co_name=f"network_{network.arch.id}")
    return FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
