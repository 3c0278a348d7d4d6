"""`nas export`, from a name to a checked file, its time and memory."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.cascade.files import export_cascade
from nas.data import load as load_data
from nas.export import check_file
from nas.files import publish
from nas.formats import file_target, range_images, write_exported
from nas.latency import LatencyTable
from nas.networks import Named, network_named
from nas.peak_memory import peak_mb, weights_mb
from nas.progress import say
from nas.runtimes.quantise import calibration_images
from nas.scratch import scratch_dir
from nas.tables import measured_ms, table_path
from nas.target import Target
from nas.thresholded import compare
from nas.timing import time_networks
from search_spaces.cascade import Cascade, CascadeNetwork
from search_spaces.errors import InputError

__all__ = ["export_network"]

TIMED_IMAGES = 64  # that a file whose time depends on the image is timed on, one by one
LOW_AGREEMENT = 0.95  # share of images with the same best class, below which a file in int8 is said to differ


def export_network(
    name: str,
    form: str,
    target: str | None,
    table: Path | None,
    out: Path,
    seed: int,
    *,
    int8: bool = False,
    weights: Path | None = None,
    dataset: str | None = None,
    budget_ms: float | None = None,
    static: bool = False,
    foreign: bool = False,
) -> dict[str, Any]:
    """`nas export`: the file's path, how it agrees with the network on images of `dataset` or random ones, its time and memory.

    Without a target it is the table's, or one thread of the first runtime that reads the format. In `int8`, training images of `dataset`,
    or of what the network's run was trained on, tell the ranges of activations, and random ones those of a network with random weights.
    With `static` it is that of the network that keeps of every image as many patches as stay on average. For a network with
    thresholds, a table and `dataset`, `images_ms` holds the mean and the p95 over images, predicted and measured.

    Raises:
        InputError: no such network, format or target, one that does not go with the others, a package that is missing, a table of another
            target or machine, no images to tell ranges by, or a file that gives other scores than the network; then there is no file.
    """
    wanted, prices = _file_prices(form, int8, target, table, foreign)
    named = network_named(name, budget_ms, weights, cascades=True)
    if isinstance(named.arch, Cascade):
        return _export_cascade(named, wanted, prices, dataset, out, seed, fixed=static)
    if static and named.arch.keeping(adaptive=False) == named.arch:
        raise InputError(f"--static fixes what thresholds choose, and {name} has none; leave it out")
    named = named.static() if static else named
    if int8 and dataset is None:
        dataset = _own_data(name, named)
    network = named.with_weights(seed)
    ranges = _ranges(named, dataset, wanted.batch, seed) if int8 else None
    images = named.images_to_check(dataset, wanted.batch)
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch_dir()) as folder:
        written = write_exported(network, form, wanted, Path(folder), ranges, named.normalisation)
        checked = check_file(written, network, images, wanted)
        publish(sorted(written.parent.iterdir()), out)  # in place of files from before only if these are right
    path = out / written.name
    if int8 and checked.top1_agreement < LOW_AGREEMENT:
        say(f"in int8, the best class is another one on {1 - checked.top1_agreement:.1%} of {checked.images} images")
    if prices is None:
        taken = time_networks([path], wanted, reference=named.arch, seed=seed)[0].ms
    else:
        taken = measured_ms([path], prices, seed)[0]
    found: dict[str, Any] = {
        "path": str(path),
        "max_abs_diff": checked.max_abs_diff,
        "top1_agreement": checked.top1_agreement,
        "images": checked.images,
    }
    found |= {"measured_ms": taken, "predicted_ms": None if prices is None else prices.predict(named.arch).ms}
    found |= {"peak_mb": peak_mb([path], wanted)[0], "weights_mb": weights_mb(named.arch)}
    if prices is not None and dataset is not None and named.arch != named.arch.keeping(adaptive=False):
        spread = compare(path, network, named.arch, images[:TIMED_IMAGES], prices, seed=seed)
        found["images_ms"] = {name: spread[name] for name in ("predicted", "measured", "ratio", "kept")}
    return found


def _export_cascade(
    named: Named, target: Target, prices: LatencyTable | None, dataset: str | None, out: Path, seed: int, *, fixed: bool
) -> dict[str, Any]:
    """The files of a cascade's exits, see `export_cascade`; `fixed` is whether fixed numbers of patches were asked for."""
    if fixed or (target.runtime, target.dtype) != ("ort", "fp32"):
        raise InputError(
            f"cascade {named.arch.id} is exported as an ONNX file of each exit, in float, for ONNX Runtime; leave out --format, --int8 "
            "and --static, and name a --target such as cpu-ort-fp32-b1-t1"
        )
    network = named.with_weights(seed)
    assert isinstance(network, CascadeNetwork)
    return export_cascade(network, target, prices, named.images_to_check(dataset, target.batch), out, seed)


def _file_prices(
    form: str, int8: bool, target: str | None, table: Path | None, foreign: bool
) -> tuple[Target, LatencyTable | None]:
    """The target that a file is timed on, see `file_target`, and the table that predicts its time, whose target it is unless one is named."""
    if table is None:
        return file_target(form, int8, target), None
    prices = LatencyTable.load(table_path(table))
    wanted = file_target(form, int8, target or prices.target.name)
    prices.check_machine(foreign)
    if prices.target != wanted:
        raise InputError(f"{prices.path.name} is for {prices.target.name}; pass --target {prices.target.name}")
    return wanted, prices


def _own_data(name: str, named: Named) -> str | None:
    """The data set that the network was trained on, whose images tell ranges for int8; None for random weights, for which random images do."""
    own = named.trained_on
    if own is None and named.network is not None:
        raise InputError(
            f"--int8 rounds to ranges that are told by images such as {name} was trained on; name them with --data"
        )
    return own


def _ranges(named: Named, dataset: str | None, batch: int, seed: int) -> Tensor:
    """Images (N, C, H, W), whole batches of them, that tell the ranges of activations in int8."""
    arch = named.arch
    if dataset is None:
        say("ranges of int8 are those of random images, as the weights are random")
        shape = (batch, arch.channels, arch.image_size, arch.image_size)
        return torch.from_numpy(np.concatenate([*calibration_images(shape)]))
    data = load_data(dataset, image_size=arch.image_size, labels=False)
    return named.seen(range_images(data, batch, seed), data)
