"""Networks in torch: what the runtimes `eager`, `compiled` and `graph` have in common; needs no more than torch and safetensors."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.runtimes.batches import in_batches
from nas.runtimes.program import Program
from nas.runtimes.random_networks import fixed_images, random_network
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces import zoo
from search_spaces.arch import Arch, Network

__all__ = [
    "Forward",
    "Session",
    "conditions",
    "file_network",
    "lacks_cuda",
    "prepared_network",
    "save",
    "timed_network",
]

Forward = Callable[[Tensor], Tensor]
"""Images (batch, channels, H, W) of the target's type, on its device -> logits (batch, classes) there."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def lacks_cuda() -> str | None:
    """What a machine lacks to run torch on a CUDA GPU; None where nothing is missing."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build with it, see pytorch.org/get-started"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; it takes an NVIDIA GPU, and a driver for CUDA " + torch.version.cuda
    return None


def timed_network(arch: Arch, target: Target) -> Network:
    """The network with fixed random weights, of the target's type; thresholds are such that the fixed input keeps `keep` patches.

    Raises:
        InputError: a network with thresholds, on a target that cannot run it.
    """
    target.check_runs(arch)
    shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
    return random_network(arch, torch.from_numpy(fixed_images(shape))).to(DTYPES[target.dtype])


def file_network(path: Path, target: Target) -> Network:
    """The network in a file of weights: one of ours, which says what it holds, or a release of the zoo's.

    Raises:
        InputError: the file is missing or damaged, holds no network, or one with thresholds that the target cannot run.
    """
    network = zoo.from_checkpoint(path)
    target.check_runs(network.arch)
    return network.to(DTYPES[target.dtype])


def prepared_network(path: Path, arch: Arch) -> Network:
    """The network `arch` with the tensors that `save` wrote to `path`; the file is removed."""
    network = arch.build()
    _fill(network, path)
    path.unlink()
    return network


def save(network: Network | Program, path: Path) -> None:
    """Write all of a network's tensors, index tables among them."""
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in _tensors(network)}, path
    )


def _tensors(network: Network | Program) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


@torch.inference_mode(False)  # compiled code is for ordinary tensors, which it tells from those of inference mode
def _fill(network: Network | Program, path: Path) -> None:
    """Put the tensors of a file into the network, each in fresh memory of its device; the network's are the same objects as before."""
    held = load_file(path)
    for name, tensor in _tensors(network):
        tensor.data = held[name].to(tensor.device, copy=True)  # the file's are views of one mapped block


@contextmanager
def conditions(target: Target) -> Iterator[bool]:
    """Inference with the target's threads and without TF32, which would be neither fp32 nor bf16; undone at the end.

    Gives whether the number of threads was another one: what torch remembers of its kernels is forgotten then.
    """
    threads, precision, tf32 = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    changed = target.threads is not None and target.threads != threads
    try:
        if changed and target.threads is not None:
            torch.set_num_threads(target.threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.inference_mode():
            yield changed
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
        if changed:
            torch.set_num_threads(threads)


class Session:
    """A network run by torch, operator by operator; implements `nas.runtimes.Session`.

    The weights lie in a file, from which `reopen` puts them into fresh memory in milliseconds; a closed session has none. Modules
    and tensors stay the same objects, so what was compiled for them stays right.
    """

    def __init__(self, network: Network | Program, target: Target) -> None:
        """Take the network, of the target's type, to itself.

        Raises:
            InputError: this machine cannot measure the target.
        """
        target.check_here()
        self.target, self.arch = target, network.arch
        self._folder = tempfile.TemporaryDirectory(prefix="torch-", dir=scratch_dir())  # removed with the session
        self._weights = Path(self._folder.name) / "weights.safetensors"
        save(network, self._weights)
        self._network = network.eval().requires_grad_(False).to(target.device)
        self._images = fixed_images((target.batch, self.arch.channels, self.arch.image_size, self.arch.image_size))
        self._forward: Forward | None = None

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        return self.arch.channels

    @property
    def image_size(self) -> int:
        """Pixels of each side of the images it takes."""
        return self.arch.image_size

    @property
    def classes(self) -> int:
        """Class scores it gives for an image."""
        return self.arch.classes

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (N, channels, H, W) -> logits (N, classes), in batches of the target's size, the last one padded."""
        with conditions(self.target):
            forward = self._opened()
            return in_batches(
                lambda batch: forward(self._placed(batch)).float().cpu().numpy(), images, self.target.batch
            )

    def reopen(self) -> None:
        """Load the weights anew."""
        self.close()
        with conditions(self.target):
            self._opened()

    def close(self) -> None:
        """Give the memory of the weights back; their file stays."""
        self._forward = None
        for _, tensor in _tensors(self._network):
            tensor.data = tensor.new_empty(0)

    def time(self, repeats: int, images: NDArray[np.float32] | None = None) -> list[float]:
        """Milliseconds of each run on one input, without `images` a fixed one, which is on the device already.

        A run on a GPU ends when the GPU has finished, by the clock of the CPU: the time that launching takes is part of it.
        """
        clock, wait = time.perf_counter_ns, _finish if self.target.device == "cuda" else _nothing
        with conditions(self.target) as changed:
            forward, feed = self._opened(), self._placed(self._images if images is None else images)
            if changed:
                forward(feed)
            wait()
            marks = [clock()]
            for _ in range(repeats):
                forward(feed)
                wait()
                marks.append(clock())
        return [(after - before) / 1e6 for before, after in pairwise(marks)]

    def _placed(self, images: NDArray[np.float32]) -> Tensor:
        """A batch of images where the network reads it."""
        return torch.from_numpy(images).to(self.target.device, DTYPES[self.target.dtype])

    def _opened(self) -> Forward:
        if self._forward is None:
            _fill(self._network, self._weights)
            self._forward = self._started()
        return self._forward

    def _started(self) -> Forward:
        """What runs a batch, now that the weights are there."""
        return self._network


def _finish() -> None:
    torch.cuda.synchronize()


def _nothing() -> None:
    pass
