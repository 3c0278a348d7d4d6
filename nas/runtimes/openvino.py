"""OpenVINO on the CPU, in float32 or int8; needs the packages `openvino` and `onnx`."""

import io
import shutil
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.files import atomic_path
from nas.runtimes.batches import check_input, in_batches
from nas.runtimes.onnxruntime import random_graph, read_file
from nas.runtimes.quantise import check_quantised, is_quantised
from nas.runtimes.random_networks import fixed_images
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = [
    "SUFFIX",
    "Session",
    "from_arch",
    "from_file",
    "from_prepared",
    "graph_batch",
    "graph_note",
    "lacks",
    "prepare",
    "weights_of",
    "write_graph",
]

SUFFIX = ".xml"  # of OpenVINO's own files; the weights lie beside them

NOTES = "nas"  # what of a file's runtime information is ours

QUANTISES = "FakeQuantize"  # the operator by which OpenVINO rounds activations
STAYS = (
    4_000_000  # bytes of a compiled network that stays in memory when it is closed: to load one takes 0.1 s and more
)


def lacks(device: str) -> str | None:
    """What a machine with the package lacks to run on the device: nothing."""
    return None


def from_arch(arch: Arch, target: Target) -> "Session":
    """A session of a network with fixed random weights; in int8 of a graph quantised on random images.

    Raises:
        InputError: a network with thresholds.
    """
    return Session(_compile(random_graph(arch, target), target, arch.id), target, arch.id)


def prepare(arch: Arch, target: Target, path: Path) -> None:
    """Write what `from_prepared` opens: the network of `from_arch`, compiled for this machine.

    Raises:
        InputError: as `from_arch`.
    """
    path.write_bytes(_compile(random_graph(arch, target), target, arch.id))


def from_prepared(path: Path, target: Target, arch: Arch) -> "Session":
    """A session of a prepared network, which it takes to itself."""
    return Session(path, target, arch.id)


def from_file(path: Path, target: Target) -> "Session":
    """A session of an ONNX file, or of one in OpenVINO's own form, which is run as it is: one for an int8 target is quantised already.

    Raises:
        InputError: the file is missing, not a network that OpenVINO loads, or has another batch size; or it computes in
            float, and the target in int8.
    """
    if path.suffix == SUFFIX:
        quantised = any(node.get_type_name() == QUANTISES for node in _read(path, str(path)).get_ops())
    else:
        quantised = is_quantised(read_file(path))  # what is not ONNX, OpenVINO would try as other formats, aloud
    check_quantised(quantised, str(path), target)
    return Session(_compile(path, target, str(path)), target, str(path))


def write_graph(graph: bytes, path: Path, notes: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write an ONNX graph in OpenVINO's own form: `path`, which has the `notes` in it, and beside it the weights, as they are in the graph.

    At no moment does a file lie beside weights that are not its own.

    Raises:
        InputError: it cannot be written.
    """
    import openvino

    with atomic_path(path) as temporary:
        weights = weights_of(temporary)
        model = _read(graph, path.name)
        for name, value in notes.items():
            model.set_rt_info(value, [NOTES, name])
        try:
            openvino.save_model(model, temporary, compress_to_fp16=False)
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO cannot write {path} ({_reason(error)}); free the space or choose another --out"
            ) from error
        else:
            path.unlink(missing_ok=True)
            weights.replace(weights_of(path))
        finally:
            weights.unlink(missing_ok=True)
    return path


def weights_of(path: Path) -> Path:
    """Where the weights of a file in OpenVINO's own form lie."""
    return path.with_suffix(".bin")


def graph_note(path: Path, name: str) -> str | None:
    """What a file in OpenVINO's own form notes under a name; None where it says nothing.

    Raises:
        InputError: as `graph_batch`.
    """
    graph = _read(path, str(path))
    return str(graph.get_rt_info([NOTES, name]).value) if graph.has_rt_info([NOTES, name]) else None


def graph_batch(path: Path) -> int:
    """The batch size that a file in OpenVINO's own form takes; 1 where it takes any.

    Raises:
        InputError: the file is missing, or OpenVINO refuses it.
    """
    inputs = _read(path, str(path)).inputs
    batch = _side(inputs[0].partial_shape[0]) if inputs and len(inputs[0].partial_shape) else 1
    return batch if isinstance(batch, int) else 1


def _compile(model: Path | bytes, target: Target, name: str) -> bytes:
    """The network compiled for this machine, in OpenVINO's own form.

    Raises:
        InputError: OpenVINO refuses the graph, or its input is not a batch of images of the target's size.
    """
    import openvino

    graph = _read(model, name)
    inputs = [(given.any_name, [_side(side) for side in given.partial_shape]) for given in graph.inputs]
    shape = check_input(name, inputs, target)
    try:
        graph.reshape(list(shape))
        compiled = openvino.Core().compile_model(graph, "CPU", _settings(target))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot compile {name} ({_reason(error)}); choose another target") from error
    written: bytes = compiled.export_model()
    return written.getvalue() if isinstance(written, io.BytesIO) else bytes(written)


def _read(model: Path | bytes, name: str) -> Any:
    """OpenVINO's form of a network in a file, or of an ONNX graph.

    Raises:
        InputError: the file is missing, or OpenVINO refuses it.
    """
    import openvino

    if isinstance(model, Path) and not model.is_file():
        raise InputError(f"{model} does not exist; check the path")
    try:
        return openvino.Core().read_model(str(model) if isinstance(model, Path) else io.BytesIO(model))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot load {name} ({_reason(error)}); export it again") from error


def _side(side: Any) -> int | str:
    return int(side.get_length()) if side.is_static else "?"


def _reason(error: RuntimeError) -> str:
    """The last line of a message: those before it tell places in OpenVINO's source."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"])[-1]


def _settings(target: Target) -> dict[str, Any]:
    """One network at a time on the target's threads; in float32 where a CPU with AMX would compute in bf16 unless told."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": target.threads or 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the protocol pins the process
    }


class Session:
    """A network in OpenVINO; implements `nas.runtimes.Session`.

    A small network stays compiled when it is closed, and only its activations get fresh memory; a large one is loaded anew
    from a temporary file, so that a closed one has no memory.
    """

    def __init__(self, compiled: Path | bytes, target: Target, name: str) -> None:
        """Take a network that was compiled for this machine, its file to itself; `name` is what messages call it.

        Raises:
            InputError: this machine cannot measure the target.
        """
        target.check_here()
        self.target, self.name = target, name
        self._folder = tempfile.TemporaryDirectory(prefix="openvino-", dir=scratch_dir())  # removed with the session
        self._compiled = Path(self._folder.name) / "compiled"
        if isinstance(compiled, Path):
            shutil.move(compiled, self._compiled)
        else:
            self._compiled.write_bytes(compiled)
        self._stays = self._compiled.stat().st_size <= STAYS
        self._network: Any = None
        self._request: Any = None
        self._images = fixed_images(tuple(self._opened().model_inputs[0].shape))

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        return int(self._images.shape[1])

    @property
    def image_size(self) -> int:
        """Pixels of each side of the images it takes."""
        return int(self._images.shape[-1])

    @property
    def classes(self) -> int:
        """Class scores it gives for an image."""
        return int(self.run(self._images).shape[1])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (N, channels, H, W) -> logits (N, classes), in batches of the target's size, the last one padded."""

        def logits(batch: NDArray[np.float32]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = np.array(self._opened().infer({0: batch})[0])
            return found

        return in_batches(logits, images, self.target.batch)

    def reopen(self) -> None:
        """Load the network anew, or give a small one fresh memory to work in."""
        self.close()
        self._opened()

    def close(self) -> None:
        """Give the memory back that a small network works in, that of a large one altogether."""
        self._request = None
        if not self._stays:
            self._network = None

    def time(self, repeats: int, images: NDArray[np.float32] | None = None) -> list[float]:
        """Milliseconds of each run on one input, without `images` a fixed one; between runs the clock is read and no more."""
        feed = {0: self._images if images is None else images}
        run, clock = self._opened().infer, time.perf_counter_ns
        marks = [clock()]
        for _ in range(repeats):
            run(feed, share_inputs=True, share_outputs=True)
            marks.append(clock())
        return [(after - before) / 1e6 for before, after in pairwise(marks)]

    def _opened(self) -> Any:
        if self._network is None:
            import openvino

            compiled = io.BytesIO(self._compiled.read_bytes())
            self._network = openvino.Core().import_model(compiled, "CPU", _settings(self.target))
        if self._request is None:
            self._request = self._network.create_infer_request()
        return self._request
