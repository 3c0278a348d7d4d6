"""What else the dense network could become within the same budget, by means that know less of it; printed beside the result."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.dense import network_of
from compress.prune import Pruned
from compress.slicing import plan_block, shrink, weights_of
from compress.statistics import collect
from compress.uniform import by_magnitude, resized, uniform_sizes
from nas.cost import macs, params
from nas.evaluate import calibration_batches
from nas.export import SUFFIX
from nas.networks import Named
from nas.pruning.files import Files, quantised
from nas.pruning.job import Job
from nas.pruning.judge import judged, right
from nas.pruning.own_head import check_labelled, with_own_head
from nas.pruning.siblings import smaller_sibling
from nas.runs import digest
from nas.runtimes import RUNTIMES
from nas.tables import timed
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError

__all__ = ["Heal", "Rival", "rival_rows"]

Weights = dict[str, Tensor]
Heal = Callable[[str, Arch, Weights], Weights]
"""A rival's name, network and weights -> its weights after as much training as the result had."""

ROUNDS = 6  # visits of each image size, which tell the one that is timed in earnest


@dataclass(frozen=True)
class Rival:
    """Another network; `file` is what is timed where that is not the architecture."""

    name: str
    note: str
    arch: Arch
    weights: Weights
    file: Path | None = None


@dataclass(frozen=True)
class Missing:
    """A rival that cannot be had."""

    name: str
    why: str


def rival_rows(
    job: Job, model: str, found: Pruned, budget: float, files: Files, heal: Heal | None = None
) -> list[dict[str, Any]]:
    """A row for the dense network, for what was found, and for each rival, all timed in one run; the test split is read here.

    Uniform cuts are as large as the table predicts to be within the budget; what it has no rows for, other image sizes, is timed
    to tell the largest within it.

    Args:
        job: what was pruned.
        model: what the user called it.
        found: what is left of it.
        budget: in ms of the table's statistic.
        files: where the dense network's file is.
        heal: trains rivals as long as the result was; None where nothing is trained.

    Returns:
        JSON-ready: `name`, `note`, `params`, `macs`, `measured_ms`, `acc`, `agreement` (of images without labels, in place of `acc`);
        the figures are None where `note` says why a rival cannot be had.
    """
    arch, dense = job.named.arch, dict(job.network.state_dict())
    rows = [Rival("dense", model, arch, dense), Rival("pruned", "", found.arch, found.weights)]
    others = [
        _sibling(job, model, files.out / "rivals" / "sibling-head"),
        *_uniform(job, budget),
        _lower_resolution(job, budget),
    ]
    trained = [one if heal is None or isinstance(one, Missing) else _healed(one, heal) for one in others]
    every = [*rows, *trained, _int8(job, files)]
    present = [one for one in every if isinstance(one, Rival)]
    timings = timed([one.file or one.arch for one in present], job.table, job.seed)
    taken = {one.name: timing.ms for one, timing in zip(present, timings, strict=True)}
    return [_row(job, one, taken.get(one.name)) for one in every]


def _row(job: Job, one: Rival | Missing, ms: float | None) -> dict[str, Any]:
    if isinstance(one, Missing):
        nothing = dict.fromkeys(("params", "macs", "measured_ms", "acc", "agreement"))
        return {"name": one.name, "note": f"not available: {one.why}", **nothing}
    figures = {"params": params(one.arch), "macs": macs(one.arch), "measured_ms": ms, **right(job, _share(job, one))}
    return {"name": one.name, "note": one.note, **figures}


def _share(job: Job, one: Rival) -> float | None:
    """Share of the test split that it gets right: the file where there is one."""
    if one.file is None or job.encoder:
        return judged(job, network_of(one.arch, one.weights), "test")
    session = RUNTIMES["ort"].from_file(one.file, Target("cpu", "ort", "int8", job.table.target.batch, threads=1))
    data = job.data.at(one.arch.image_size)
    found = [session.run(images.numpy()).argmax(1) for images, _ in data.loader("test", 250)]
    return float((np.concatenate(found) == job.wanted("test")).mean())


def _healed(one: Rival, heal: Heal) -> Rival:
    return Rival(one.name, one.note, one.arch, heal(one.name, one.arch, one.weights))


def _sibling(job: Job, model: str, out: Path) -> Rival | Missing:
    """The next smaller model of timm's family, as it is published; for other classes with a classifier fitted as the dense network's was, in `out`."""
    try:
        name, found = smaller_sibling(model)
        own, wanted = found.arch.classes, job.named.arch.classes
        found = found.seeing(job.data)
        if own != wanted and (job.encoder or not job.data.labelled):
            what = f"gives {own} features" if job.encoder else f"tells {own} classes apart"
            return Missing("sibling", f"{name} {what}, not {wanted}")
        if own != wanted:
            found, name = _of_classes(job, found, out), f"{name}, classifier fitted"
    except InputError as error:
        return Missing("sibling", str(error))
    assert found.network is not None
    return Rival("sibling", name, found.network.arch, dict(found.network.state_dict()))


def _of_classes(job: Job, found: Named, out: Path) -> Named:
    """A network with a classifier fitted to the data, in the run folder `out`."""
    assert found.network is not None
    source, found = digest(found.network.state_dict()), found.of_classes(job.data.classes, job.seed)
    assert found.network is not None
    data = job.data.at(found.network.arch.image_size)
    check_labelled(data)
    return replace(found, network=with_own_head(found.network, data, source, out))


def _uniform(job: Job, budget: float) -> Iterator[Rival | Missing]:
    """Every block with the same share of its heads and neurons: those that matter least, with the rest solved anew; those of least weight."""
    arch, weights = job.named.arch, dict(job.network.state_dict())
    cuts = [(share, sizes) for share, sizes in uniform_sizes(arch) if not job.table.unpriced(resized(arch, sizes).rows)]
    times = [job.table.predict(resized(arch, sizes)).ms for _, sizes in cuts]
    fits = [cut for cut, ms in zip(cuts, times, strict=True) if ms <= budget]
    if not fits:
        why = f"with the fewest heads and neurons in every block that the table prices it is predicted to take {min(times):.4g} ms"
        yield from (Missing(name, why) for name in ("uniform", "magnitude"))
        return
    share, sizes = fits[0]
    moments = collect(job.network, calibration_batches(job.data, job.seed, job.images))
    plans = {
        place: plan_block(spec, weights_of(weights, place), moments[place])
        for place, spec in enumerate(arch.blocks)
        if isinstance(spec, MB3D)
    }
    note = f"{share:.0%} of heads and neurons in every block"
    yield Rival("uniform", note, *shrink(arch, weights, moments, plans, sizes))
    yield Rival(
        "magnitude", f"{note}, those of least norm cut out", resized(arch, sizes), by_magnitude(arch, weights, sizes)
    )


def _lower_resolution(job: Job, budget: float) -> Rival | Missing:
    """The dense network on the largest images with which it is measured to be within the budget."""
    archs = _at_lower_resolutions(job.named.arch)
    times = [timing.ms for timing in timed(archs, job.table, job.seed, ROUNDS)] if archs else []
    fits = [arch for arch, ms in zip(archs, times, strict=True) if ms <= budget]
    if not fits:
        least = f", the smallest in {min(times):.4g} ms" if times else ""
        return Missing("resolution", f"on no smaller images it runs within the budget{least}")
    side = fits[0].image_size
    network = job.named.at(side).network
    assert network is not None
    return Rival("resolution", f"images of {side} pixels", network.arch, dict(network.state_dict()))


def _at_lower_resolutions(arch: Arch) -> list[Arch]:
    """The network at smaller image sizes, one for each grid of patches, the largest first."""
    first = next(place for place, spec in enumerate(arch.blocks) if isinstance(spec, MB3D))
    found = {arch.states[first]: arch}
    for side in range(arch.image_size - 1, 0, -1):
        try:
            other = arch.at(side)
        except ValueError:  # its blocks cannot run at that size
            continue
        found.setdefault(other.states[first], other)
    return list(found.values())[1:]


def _int8(job: Job, files: Files) -> Rival | Missing:
    """The dense network's file in int8, timed on the target beside the others."""
    target, arch = job.table.target, job.named.arch
    if SUFFIX not in RUNTIMES[target.runtime].files:
        return Missing("int8", f"{target.runtime} runs no ONNX files, which those in int8 are")
    if target.dtype == "int8":
        return Missing("int8", f"{target.name} computes in int8 as it is")
    file = quantised(job, arch, files.dense, files.scratch / "dense.int8.onnx")
    return Rival("int8", "the dense network, quantised", arch, dict(job.network.state_dict()), file)
