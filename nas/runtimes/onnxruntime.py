"""ONNX Runtime on the CPU; needs no more than the `onnxruntime` and `onnx` packages."""

import io
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.runtimes.batches import check_input, in_batches
from nas.runtimes.quantise import calibration_images, check_quantised, is_quantised, quantise
from nas.runtimes.random_networks import fixed_images, random_network
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = [
    "Chain",
    "Session",
    "batch_of",
    "export_onnx",
    "from_arch",
    "from_file",
    "from_prepared",
    "lacks",
    "prepare",
    "random_graph",
    "read_file",
]

OPSET = 18


def lacks(device: str) -> str | None:
    """What a machine with the package lacks to run on the device: nothing."""
    return None


def export_onnx(module: nn.Module, example: Tensor) -> bytes:
    """The module in eval mode as an ONNX graph for timing: `images` of the example's shape -> `logits`.

    Uses the TorchScript exporter, ten times as fast as dynamo's; ONNX Runtime times both graphs alike, but for networks
    with thresholds of a third of a millisecond, where shapes are worked out by more operators and cost 2% more. Files for
    users are exported elsewhere, with dynamo.
    """
    buffer = io.BytesIO()
    target: Any = buffer  # the exporter's annotation leaves out the streams that it takes
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*TorchScript.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.onnx.*")
        warnings.filterwarnings("ignore", message="Constant folding - ")  # which is not asked for
        warnings.filterwarnings(
            "ignore", module=r"search_spaces\."
        )  # of the tracer: the batch, which is fixed, decides
        torch.onnx.export(
            module.eval(),
            (example,),
            target,
            dynamo=False,
            do_constant_folding=False,  # the runtime does it when it optimises, and faster
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
    return buffer.getvalue()


def from_arch(arch: Arch, target: Target) -> "Session":
    """A session of a network with fixed random weights; thresholds are such that its fixed input keeps `keep` patches.

    Raises:
        InputError: a network with thresholds, which takes images one by one, on a target with a larger batch.
    """
    return Session(random_graph(arch, target), target, arch.id)


def prepare(arch: Arch, target: Target, path: Path) -> None:
    """Write what `from_prepared` opens: the graph of `from_arch`, optimised for this machine.

    Raises:
        InputError: as `from_arch`.
    """
    _optimise(random_graph(arch, target), target, arch.id, path)


def from_prepared(path: Path, target: Target, arch: Arch) -> "Session":
    """A session of a prepared graph, which it takes to itself."""
    return Session(path, target, arch.id, prepared=True)


def random_graph(arch: Arch, target: Target) -> bytes:
    """The graph of a network with fixed random weights; on an int8 target quantised on random images.

    Raises:
        InputError: as `from_arch`.
    """
    target.check_runs(arch)
    shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
    network = random_network(arch, torch.from_numpy(fixed_images(shape)))
    graph = export_onnx(network, arch.example(target.batch))
    return quantise(graph, calibration_images(shape)) if target.dtype == "int8" else graph


def from_file(path: Path, target: Target) -> "Session":
    """A session of an ONNX file.

    Raises:
        InputError: the file is missing, not a network that ONNX Runtime loads, or has another batch size; or it computes in
            float, and the target in int8.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    session = Session(path, target)
    check_quantised(is_quantised(read_file(path)), str(path), target)
    return session


def read_file(path: Path) -> Any:
    """The ONNX model in a file, without weights that lie beside it.

    Raises:
        InputError: the file is missing or not ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file ({error}); export it again") from error


def batch_of(path: Path) -> int:
    """The batch size that an ONNX file takes; 1 where it takes any.

    Raises:
        InputError: the file is missing or not ONNX.
    """
    inputs = read_file(path).graph.input
    sizes = [given.type.tensor_type.shape.dim[0].dim_value for given in inputs if given.type.tensor_type.shape.dim]
    return max(1, *sizes) if sizes else 1


def note_of(path: Path, name: str) -> str | None:
    """What an ONNX file says under a name in its metadata; None where it says nothing.

    Raises:
        InputError: the file is missing or not ONNX.
    """
    return next((own.value for own in read_file(path).metadata_props if own.key == name), None)


def with_notes(graph: bytes, notes: Mapping[str, str]) -> bytes:
    """The ONNX graph with more in its metadata."""
    import onnx

    model = onnx.load_from_string(graph)
    for name, value in notes.items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content


class Session:
    """A network in ONNX Runtime; implements `nas.runtimes.Session`.

    The graph is optimised once, into a temporary file, so that `reopen` takes milliseconds and a closed session has no
    memory.
    """

    def __init__(self, model: Path | bytes, target: Target, name: str = "", *, prepared: bool = False) -> None:
        """Optimise the graph for this machine, unless it is `prepared`; `name` is what messages call it, else its path.

        Raises:
            InputError: ONNX Runtime refuses the graph, or its input is not a batch of images of the target's size.
        """
        target.check_here()
        name = name or (str(model) if isinstance(model, Path) else "the network")
        self.target, self.name = target, name
        self._live: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="ort-", dir=scratch_dir())  # removed with the session
        self._graph = Path(self._folder.name) / "optimised.onnx"
        if prepared:
            assert isinstance(model, Path)
            shutil.move(model, self._graph)
        else:
            _optimise(model, target, name, self._graph)
        described = self._session().get_inputs()
        shape = check_input(name, [(given.name, given.shape) for given in described], target)
        self._input = described[0].name
        self._images = fixed_images(shape)

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        return int(self._images.shape[1])

    @property
    def image_size(self) -> int:
        """Pixels of each side of the images it takes."""
        return int(self._images.shape[-1])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (N, channels, H, W) -> logits (N, classes), in batches of the target's size, the last one padded."""
        session = self._session()

        def logits(batch: NDArray[np.float32]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = session.run(None, {self._input: batch})[0]
            return found

        return in_batches(logits, images, self.target.batch)

    @property
    def classes(self) -> int:
        """Class scores it gives for an image."""
        return int(self.run(self._images).shape[1])

    def reopen(self) -> None:
        """Load the optimised graph anew."""
        self.close()
        self._session()

    def close(self) -> None:
        """Give the memory back; the file stays."""
        self._live = None

    def time(self, repeats: int, images: NDArray[np.float32] | None = None) -> list[float]:
        """Milliseconds of each run on one input, without `images` a fixed one; between runs the clock is read and no more."""
        feed = {self._input: self._images if images is None else images}
        run, clock = self._session().run, time.perf_counter_ns
        marks = [clock()]
        for _ in range(repeats):
            run(None, feed)
            marks.append(clock())
        return [(after - before) / 1e6 for before, after in pairwise(marks)]

    def _session(self) -> Any:
        if self._live is None:
            self._live = _open(str(self._graph), self.target, optimise=False)
        return self._live


class Chain:
    """Files run one after the other, each on the images and on what the one before passes on; implements `nas.interleave.Timed`.

    An output `name` of one is the input `name_in` of the next; the first output is the logits.
    """

    def __init__(self, paths: Sequence[Path], target: Target) -> None:
        """Optimise the graphs for this machine.

        Raises:
            InputError: ONNX Runtime refuses one.
        """
        target.check_here()
        self.target = target
        self._folder = tempfile.TemporaryDirectory(prefix="ort-", dir=scratch_dir())  # removed with the chain
        self._graphs = [Path(self._folder.name) / str(number) / "optimised.onnx" for number in range(len(paths))]
        for path, graph in zip(paths, self._graphs, strict=True):
            graph.parent.mkdir()  # weights are written beside a graph, under one name
            _optimise(path, target, str(path), graph)
        self._live: list[tuple[Any, list[str], list[str]]] = []  # with the names of inputs, and of those to come
        self.reopen()
        shapes = {given.name: tuple(given.shape) for given in self._live[0][0].get_inputs()}
        self._images = fixed_images(shapes["images"])

    def reopen(self) -> None:
        """Load the optimised graphs anew."""
        self.close()
        for graph in self._graphs:
            session = _open(str(graph), self.target, optimise=False)
            asked = [given.name for given in session.get_inputs()]
            self._live.append((session, asked, [f"{given.name}_in" for given in session.get_outputs()]))

    def close(self) -> None:
        """Give the memory back; the files stay."""
        self._live = []

    @property
    def channels(self) -> int:
        """Channels of the images that all take."""
        return int(self._images.shape[1])

    @property
    def image_size(self) -> int:
        """Pixels of each side of the images that all take."""
        return int(self._images.shape[-1])

    @property
    def classes(self) -> int:
        """Class scores that each file gives for an image."""
        return int(self.run(self._images).shape[2])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (N, channels, H, W) -> logits (N, files, classes), in batches of the target's size, the last one padded."""
        return in_batches(lambda batch: np.stack(self._logits(batch), 1), images, self.target.batch)

    def time(self, repeats: int) -> list[float]:
        """Milliseconds of each run of all files on one fixed input."""
        marks = [time.perf_counter_ns()]
        for _ in range(repeats):
            self._logits(self._images)
            marks.append(time.perf_counter_ns())
        return [(after - before) / 1e6 for before, after in pairwise(marks)]

    def _logits(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        given, found = {"images": images}, []
        for session, asked, passed in self._live:
            values = session.run(None, {name: given[name] for name in asked})
            given.update(zip(passed, values, strict=True))
            found.append(values[0])
        return found


def _optimise(model: Path | bytes, target: Target, name: str, path: Path) -> None:
    """Write the graph, optimised for this machine, to `path`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    refusals = (ort.Fail, ort.InvalidProtobuf, ort.InvalidGraph, ort.InvalidArgument, ort.NotImplemented)
    try:
        _open(str(model) if isinstance(model, Path) else model, target, optimise=True, keep=path)
    except refusals as error:
        raise InputError(f"ONNX Runtime cannot load {name} ({str(error).splitlines()[0]}); export it again") from error


def _open(model: str | bytes, target: Target, *, optimise: bool, keep: Path | None = None) -> Any:
    """An InferenceSession with the target's threads; `keep` is where to write the optimised graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # writing an optimised graph warns that it fits this machine only, as it should
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    if keep is not None:
        options.optimized_model_filepath = str(keep)
        if isinstance(model, str):  # its weights may lie beside it, where the optimised graph would not find them
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
