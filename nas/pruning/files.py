"""The files of a run: what is left as ONNX, checked against its network, and timed beside the dense one's in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.dense import network_of
from nas.elsewhere import time_elsewhere
from nas.export import SUFFIX, Checked, check_file, export_onnx
from nas.formats import range_images, write_int8
from nas.latency import LatencyTable
from nas.pruning.job import Job
from nas.pruning.saved import Times, remembered
from nas.runtimes import RUNTIMES
from nas.target import Target
from nas.thresholded import ROUNDS as IMAGE_ROUNDS
from nas.thresholded import Spread
from nas.timing import ROUNDS, Timing, settled
from search_spaces.arch import Arch, Network

__all__ = ["Delivered", "FileTimes", "Files", "quantised", "retimed"]

ONNX, INT8, DENSE = "model.onnx", "model.int8.onnx", "dense.onnx"
DENSE_TIMES = "dense-times.json"
CHECKED = 1000  # search-validation images to compare on
TIMED = 32  # search-validation images that a file whose time depends on the image is timed on


@dataclass(frozen=True)
class FileTimes:
    """Milliseconds of a file; where they depend on the image, means over images."""

    ms: float  # the table's statistic of the runs
    median_ms: float  # by which budgets are held
    p95_ms: float | None = None  # over images, where they depend on them


@dataclass(frozen=True)
class Delivered:
    """The exported network."""

    path: Path  # in float, whatever the target's numbers
    checked: Checked
    timed: Path | None  # the file that was timed: in int8 where the target is; None where its runtime reads no ONNX
    times: FileTimes | None

    def over(self, budget: float) -> bool:
        """Whether the file was timed, and takes longer than `budget` ms."""
        return self.times is not None and self.times.median_ms > budget

    def summary(self, measured_ms: float) -> dict[str, Any]:
        """What a run's summary says of it; `measured_ms` is what the network took when it was chosen, by the table's statistic."""
        times = self.times
        return {
            "onnx": str(self.path),
            "onnx_max_abs_diff": self.checked.max_abs_diff,
            "onnx_top1_agreement": self.checked.top1_agreement,
            "onnx_timed": None if self.timed is None else str(self.timed),
            "onnx_measured_ms": times and times.ms,
            "onnx_measured_median_ms": times and times.median_ms,
            "onnx_measured_p95_ms": times and times.p95_ms,
            "agrees": times and times.ms / measured_ms,
        }


@dataclass(frozen=True)
class Files:
    """Where a run's files go."""

    job: Job
    out: Path  # the run's folder
    scratch: Path  # of what is not kept

    def delivered(self, arch: Arch, weights: Mapping[str, Tensor], times: FileTimes | None = None) -> Delivered:
        """Export a network to `model.onnx`, compare the file with it, and time it beside the dense network's where the target runs such files.

        A file that was made and timed before, and is written again, took `times`; one with thresholds is timed each time.

        Raises:
            InputError: file and network disagree, or the process that times was killed.
        """
        target, path = self.job.table.target, self.out / ONNX
        checked = self._exported(network_of(arch, weights), path)
        if SUFFIX not in RUNTIMES[target.runtime].files:
            return Delivered(path, checked, timed=None, times=None)
        if arch != arch.keeping(adaptive=False):
            return Delivered(path, checked, path, self._over_images(path, arch))
        timed = quantised(self.job, arch, path, self.out / INT8) if target.dtype == "int8" else path
        if times is None:
            _, timing = retimed([self.dense, timed], self.job.table, self.job.seed)
            times = FileTimes(timing.ms, timing.median)
        return Delivered(path, checked, timed, times)

    @cached_property
    def dense_times(self) -> Times:
        """What the dense network takes on the target, as it was measured first."""
        return remembered(self.out / DENSE_TIMES, lambda: self.job.measured([self.job.named.arch])[0])

    @cached_property
    def dense(self) -> Path:
        """The dense network's file, in the target's numbers."""
        path, arch = self.scratch / DENSE, self.job.named.arch
        self._exported(self.job.network, path)
        return quantised(self.job, arch, path, path) if self.job.table.target.dtype == "int8" else path

    def _over_images(self, path: Path, arch: Arch) -> FileTimes:
        """What a file with thresholds takes for search-validation images, each alone."""
        table, images = self.job.table, self.scratch / "images.npy"
        batches = self.job.data.at(arch.image_size).loader("val", TIMED, limit=TIMED)
        np.save(images, next(iter(batches))[0].numpy())
        timings = retimed([path], table, self.job.seed, IMAGE_ROUNDS, images)
        spread, medians = (Spread.of([getattr(one, name) for one in timings]) for name in ("ms", "median"))
        return FileTimes(spread.mean, medians.mean, spread.p95)

    def _exported(self, network: Network, path: Path) -> Checked:
        arch = network.arch
        batch = self.job.table.target.batch if arch == arch.keeping(adaptive=False) else 1
        export_onnx(network, arch.example(batch), path)
        data = self.job.data.at(arch.image_size)
        images = torch.cat([images for images, _ in data.loader("val", 250, limit=CHECKED)])
        return check_file(path, network, images, Target("cpu", "ort", "fp32", batch, threads=1))


def quantised(job: Job, arch: Arch, source: Path, path: Path) -> Path:
    """The ONNX file `source` of a network `arch` in int8, its ranges told by training images; written to `path`."""
    batch = job.table.target.batch
    return write_int8(source, path, range_images(job.data.at(arch.image_size), batch, job.seed), batch)


def retimed(
    files: Sequence[Path], table: LatencyTable, seed: int, rounds: int = ROUNDS, images: Path | None = None
) -> list[Timing]:
    """Each file, or the one file on each of `images`, timed now in a process that has nothing else open, in turns and at the table's clock.

    Raises:
        InputError: a file is not a network for the table's target, or the process was killed.
    """
    clock = table.reference_ms
    visits = time_elsewhere(files, table.reference, table.target, rounds=rounds, seed=seed, floor=clock, images=images)
    timings = settled(visits, rounds, table.statistic, clock)
    return list(timings.values()) if images is not None else [timings[str(file)] for file in files]
