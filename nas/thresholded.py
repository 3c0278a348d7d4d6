"""Networks with thresholds, whose time depends on the image: predicted and measured over images, one at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.thresholds import Batches, counts_of
from nas.interleave import Timed
from nas.latency import LatencyTable
from nas.runtimes import RUNTIMES, Session
from nas.target import Target
from nas.timing import Timing, settled, time_opened
from search_spaces.arch import Arch, Network
from search_spaces.errors import InputError

__all__ = ["ROUNDS", "Spread", "compare", "in_batches", "on_images", "predict_images", "time_images"]

ROUNDS = 6  # over many images a few visits of each tell mean and p95
BATCH = 32  # images whose patches are counted together


@dataclass(frozen=True)
class Spread:
    """Milliseconds over images, each run alone."""

    mean: float
    p95: float  # what 95% of the images stay within: deadlines are missed beyond it
    images: int

    @staticmethod
    def of(ms: Sequence[float] | NDArray[np.float64]) -> "Spread":
        """The spread of the images' milliseconds (images,), at least one."""
        return Spread(float(np.mean(ms)), float(np.quantile(ms, 0.95)), len(ms))


def predict_images(table: LatencyTable, arch: Arch, counts: NDArray[np.int64]) -> Spread:
    """What images take that keep `counts` (images, locations) patches in `arch`.

    Raises:
        MissingLatency: the table lacks rows of the network.
    """
    return Spread.of(table.price_counts(arch, counts))


class _OnImage:
    """One network on one image, as a thing to time; implements `nas.interleave.Timed`."""

    def __init__(self, session: Session, image: NDArray[np.float32]) -> None:
        self.session, self.image = session, image
        self.reopen, self.close = session.reopen, session.close

    def time(self, repeats: int) -> list[float]:
        """Milliseconds of each run."""
        return self.session.time(repeats, self.image)


def on_images(path: Path, target: Target, images: NDArray[np.float32]) -> dict[str, Timed]:
    """An exported file on each image (N, channels, H, W) alone, by the names that its visits get.

    Raises:
        InputError: the target has another batch than 1, there are no images, or the file is not a network for the target.
    """
    if target.batch != 1 or not len(images):
        raise InputError(
            f"times of images are taken one by one, on a target of batch 1; got {len(images)} and {target.name}"
        )
    session = RUNTIMES[target.runtime].from_file(path, target)
    return {f"image {number}": _OnImage(session, image[None]) for number, image in enumerate(images)}


def time_images(
    path: Path,
    target: Target,
    images: NDArray[np.float32],
    *,
    reference: Arch,
    reference_ms: float | None = None,
    statistic: str | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Timing]:
    """Time an exported file on each image, by the protocol that times networks in turn; see `nas.timing.time_networks`.

    Args:
        path: the ONNX file.
        target: where; its batch is 1.
        images: (N, channels, H, W).
        reference: the table's reference network.
        reference_ms: its milliseconds in the table; without them, times stay at the clock of the moment.
        statistic: the table's statistic, by which `reference_ms` was told.
        rounds: visits that each image gets at least.
        seed: decides the order of the visits.

    Raises:
        InputError: the target has another batch, there are no images, or the file is not a network for the target.
    """
    target.check_here()
    pairs = on_images(path, target, images)
    visits = time_opened(pairs, reference, target, rounds=rounds, seed=seed, floor=reference_ms)
    timings = settled(visits, rounds, statistic, reference_ms)
    return [timings[name] for name in pairs]


def compare(
    path: Path,
    network: Network,
    arch: Arch,
    images: Tensor,
    table: LatencyTable,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[str, Any]:
    """Predicted against measured, over images.

    Args:
        path: the exported file of `network`.
        network: an `arch`; counts the patches that stay.
        arch: with pruning locations.
        images: (N, channels, H, W), normalised as in training.
        table: predicts, and gives the clock.
        rounds: visits that each image gets at least.
        seed: decides the order of the visits.

    Returns:
        JSON-ready: `predicted` and `measured` (each `mean`, `p95`, `images`), `ratio` (of the two `mean` and `p95`,
        predicted over measured), `mape` over the images, `noise_floor`, `drift`, `kept` (mean count at each location), and
        `images`: a list of `counts`, `predicted_ms`, `measured_ms`.

    Raises:
        InputError: as `time_images`, or the table lacks rows of the network.
    """
    counts = counts_of(network, in_batches(images)).numpy()
    predicted = table.price_counts(arch, counts)
    timings = time_images(
        path,
        table.target,
        images.numpy(),
        reference=table.reference,
        reference_ms=table.reference_ms,
        statistic=table.statistic,
        rounds=rounds,
        seed=seed,
    )
    measured = np.array([timing.ms for timing in timings])
    wanted, found = predict_images(table, arch, counts), Spread.of(measured)
    each = zip(counts.tolist(), predicted.tolist(), measured.tolist(), strict=True)
    return {
        "predicted": asdict(wanted),
        "measured": asdict(found),
        "ratio": {"mean": wanted.mean / found.mean, "p95": wanted.p95 / found.p95},
        "mape": float(np.abs(predicted / measured - 1).mean()),
        "noise_floor": float(np.mean([timing.noise for timing in timings])),
        "drift": timings[0].drift,
        "kept": counts.mean(0).tolist(),
        "images": [{"counts": own, "predicted_ms": p, "measured_ms": m} for own, p, m in each],
    }


def in_batches(images: Tensor) -> Batches:
    """Images (N, C, H, W) in batches without labels."""
    return [(part, torch.zeros(len(part))) for part in torch.split(images, BATCH)]
