"""What a network is exported as: ONNX, OpenVINO's own form or a program of torch.export, in float or, where it can be, in int8."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nas.data import Data
from nas.evaluate import calibration_batches
from nas.export import SUFFIX as ONNX
from nas.export import export_onnx
from nas.files import atomic_write
from nas.runtimes import RUNTIMES, Session
from nas.runtimes.onnxruntime import batch_of, note_of, with_notes
from nas.runtimes.openvino import SUFFIX as OPENVINO
from nas.runtimes.openvino import graph_batch, graph_note, write_graph
from nas.runtimes.program import SUFFIX as PROGRAM
from nas.runtimes.program import program_batch, program_note, write_program
from nas.runtimes.quantise import quantise
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError
from search_spaces.zoo.released import Normalisation

__all__ = [
    "FORMATS",
    "NORMALISATION",
    "Format",
    "file_target",
    "is_exported",
    "normalisation_of",
    "open_exported",
    "range_images",
    "write_exported",
    "write_int8",
]

NORMALISATION = "normalisation.json"  # what a file calls the mean and the deviation of its images
RANGE_IMAGES = 64  # training images that tell the ranges of activations in int8


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    batch_of: Callable[[Path], int]  # the batch size that a file takes
    note_of: Callable[[Path, str], str | None]  # what a file says under a name

    @property
    def runtimes(self) -> list[str]:
        """Names of the runtimes that read it."""
        return [name for name, runtime in RUNTIMES.items() if self.suffix in runtime.files]

    @property
    def int8(self) -> bool:
        """Whether it may hold a network in int8."""
        return any("int8" in RUNTIMES[name].dtypes["cpu"] for name in self.runtimes)


FORMATS = {
    "onnx": Format(ONNX, batch_of, note_of),
    "openvino": Format(OPENVINO, graph_batch, graph_note),
    "pt2": Format(PROGRAM, program_batch, program_note),
}


def file_target(form: str, int8: bool, target: str | None) -> Target:
    """The target that files of a format are checked and timed on: the one that is named, or one thread of the first runtime that reads them.

    Raises:
        InputError: no such format or target, a format without int8, or a target that reads other files, computes in other numbers, or
            cannot be measured here, as where a package is missing.
    """
    if form not in FORMATS:
        raise InputError(f"no format called {form!r}; known: {', '.join(FORMATS)}")
    runtimes, dtype = FORMATS[form].runtimes, "int8" if int8 else "fp32"
    if int8 and not FORMATS[form].int8:
        able = " or ".join(name for name, own in FORMATS.items() if own.int8)
        raise InputError(f"{form} files compute in float; leave out --int8, or pass --format {able}")
    usual = f"cpu-{runtimes[0]}-{dtype}-b1-t1"
    found = Target.parse(target or usual)
    if found.runtime not in runtimes or found.device != "cpu":
        raise InputError(
            f"exported {form} files are timed by targets of {' or '.join(runtimes)} on a CPU, not of {found.runtime} on {found.device}; "
            f"pass --target {usual}"
        )
    if found.dtype != dtype:
        mend = "leave out --int8" if int8 else "add --int8"
        raise InputError(
            f"exported {form} files compute in {'int8' if int8 else 'float'}, and {found.name} times {found.dtype}; pass --target "
            f"{replace(found, dtype=dtype).name}{f', or {mend}' if FORMATS[form].int8 else ''}"
        )
    found.check_here()
    return found


def check_fixed(arch: Arch, form: str, target: Target) -> None:
    """Refuse a network with thresholds where its files cannot keep a number of patches for each image.

    Raises:
        InputError: they cannot.
    """
    able = form == "onnx" and target.dtype == "fp32" and RUNTIMES[target.runtime].thresholds
    if arch != arch.keeping(adaptive=False) and not able:
        raise InputError(
            f"network {arch.id} keeps of each image a number of patches of its own, which ONNX files in float for targets of ort alone "
            "can do; pass --format onnx --target cpu-ort-fp32-b1-t1, or --static for the file of the network that keeps the mean numbers"
        )


def write_exported(
    network: Network,
    form: str,
    target: Target,
    out: Path,
    ranges: Tensor | None = None,
    normalisation: Normalisation | None = None,
) -> Path:
    """Write a network in a format, for the target's batch, to a file in `out` that is named by its architecture.

    Args:
        network: in eval mode.
        form: of `FORMATS`.
        target: see `file_target`.
        out: the folder.
        ranges: for a target of int8, images (N, C, H, W) in whole batches, that tell the ranges of activations.
        normalisation: mean and deviation of the images that it takes, which the file tells; None where they are its data set's.

    Raises:
        InputError: a network with thresholds, in a format or for a target that does not run them; or the file cannot be written.
    """
    arch, example = network.arch, network.arch.example(target.batch)
    check_fixed(arch, form, target)
    path = out / f"{arch.id}{'' if ranges is None else '.int8'}{FORMATS[form].suffix}"
    notes = {} if normalisation is None else {NORMALISATION: json.dumps(normalisation)}
    if form == "pt2":
        return write_program(network, example, path, notes)
    if form == "onnx" and ranges is None:
        return export_onnx(network, example, path, notes)
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch_dir()) as folder:
        source = export_onnx(network, example, Path(folder) / f"network{ONNX}")
        if ranges is not None:
            write_int8(source, source, ranges, target.batch)
        graph = source.read_bytes()
    if form == "onnx":
        atomic_write(path, with_notes(graph, notes) if notes else graph)
        return path
    return write_graph(graph, path, notes)


def range_images(data: Data, batch: int, seed: int) -> Tensor:
    """Training images (N, C, H, W) in whole batches that tell the ranges of activations in int8.

    Raises:
        InputError: there is not one batch of them.
    """
    images = torch.cat([images for images, _ in calibration_batches(data, seed, max(RANGE_IMAGES, batch))])
    if len(images) < batch:
        raise InputError(
            f"{data.name} has {len(images)} training images, fewer than a batch of {batch}, to tell the ranges of int8; pass a target "
            "of a smaller batch"
        )
    return images[: min(max(RANGE_IMAGES // batch, 1), len(images) // batch) * batch]


def write_int8(source: Path, path: Path, ranges: Tensor, batch: int) -> Path:
    """Write the ONNX file `source` in int8 to `path`, the ranges of its activations told by images (N, C, H, W) in whole batches."""
    atomic_write(path, quantise(source.read_bytes(), (part.numpy() for part in torch.split(ranges, batch))))
    return path


def is_exported(name: str) -> bool:
    """Whether a name is that of a file of one of the formats, by its suffix."""
    return any(Path(name).suffix == form.suffix for form in FORMATS.values())


def normalisation_of(path: Path) -> Normalisation | None:
    """Mean and deviation of the images that a file of one of the formats takes; None where it does not tell, and takes them as its data set gives them.

    Raises:
        InputError: the file is missing or not whole.
    """
    text = _format_of(path).note_of(path, NORMALISATION)
    if text is None:
        return None
    try:
        pairs = zip(*json.loads(text), strict=True)
        mean, std = zip(*((float(own), float(spread)) for own, spread in pairs), strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} takes images normalised by {text!r:.80}, which is no mean and deviation; export it again"
        ) from error
    return mean, std


def _format_of(path: Path) -> Format:
    return next(form for form in FORMATS.values() if form.suffix == path.suffix)


def open_exported(path: Path) -> Session:
    """A session of a file of one of the formats, of the batch size that it takes, on one thread of the first runtime that reads it.

    Raises:
        InputError: the file is missing or not whole, or the package that reads it is not installed.
    """
    form = _format_of(path)
    runtime = form.runtimes[0]
    Target("cpu", runtime, "fp32", 1, threads=1).check_here()
    return RUNTIMES[runtime].from_file(path, Target("cpu", runtime, "fp32", form.batch_of(path), threads=1))
