"""torch without a compiler, captured once as a CUDA graph and replayed: no operator waits for the CPU to launch it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.runtimes.torch_session import Forward, Session, file_network, lacks_cuda, prepared_network, save, timed_network
from nas.target import Target
from search_spaces.arch import Arch

__all__ = ["GraphSession", "from_arch", "from_file", "from_prepared", "lacks", "prepare"]

WARM = 3  # runs before a capture, in which libraries allocate and choose what a graph cannot hold


def lacks(device: str) -> str | None:
    """What a machine with torch lacks to run on the device."""
    return lacks_cuda()


def from_arch(arch: Arch, target: Target) -> "GraphSession":
    """A session of a network with fixed random weights; see `timed_network`."""
    return GraphSession(timed_network(arch, target), target)


def from_file(path: Path, target: Target) -> "GraphSession":
    """A session of a file of weights; see `file_network`."""
    return GraphSession(file_network(path, target), target)


def prepare(arch: Arch, target: Target, path: Path) -> None:
    """Write the weights of `from_arch`."""
    save(timed_network(arch, target), path)


def from_prepared(path: Path, target: Target, arch: Arch) -> "GraphSession":
    """A session of the weights that `prepare` wrote, which it takes to itself."""
    return GraphSession(prepared_network(path, arch), target)


class GraphSession(Session):
    """A network whose operators are captured whenever it is loaded: a graph holds the addresses of its weights."""

    _buffer: Tensor | None = None  # the images that the graph reads

    def close(self) -> None:
        """Give the memory of the weights, of the graph and of its images back."""
        super().close()
        self._buffer = None

    def _started(self) -> Forward:
        buffer = super()._placed(self._images)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no annotations there
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self._network(buffer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            logits: Tensor = self._network(buffer)

        def replay(images: Tensor) -> Tensor:
            graph.replay()
            return logits

        self._buffer = buffer
        return replay

    def _placed(self, images: NDArray[np.float32]) -> Tensor:
        """The images where the graph reads them."""
        assert self._buffer is not None
        self._buffer.copy_(super()._placed(images))
        return self._buffer
