"""How good a network is in the numbers that its target computes with."""

import tempfile
from pathlib import Path

import numpy as np

from compress.dense import network_of
from compress.prune import Pruned
from nas.data import Split
from nas.evaluate import best_classes
from nas.export import SUFFIX, export_onnx
from nas.pruning.files import quantised
from nas.pruning.job import Job
from nas.runtimes import RUNTIMES
from nas.scratch import scratch_dir
from nas.train.features import mean_distance
from search_spaces.arch import Network

__all__ = ["harmed", "judged", "right", "val_accuracy"]

BATCH = 250


def judged(job: Job, network: Network, split: Split) -> float | None:
    """Share of a split's images whose best class is the one wanted (see `Job.wanted`): accuracy, or agreement with the dense network.

    On an int8 target it is that of the int8 file. None for an encoder.
    """
    if job.encoder:
        return None
    if job.table.target.dtype == "int8":
        return _in_int8(job, network, split)
    found = best_classes(network, job.data.at(network.arch.image_size), split)
    return float((found == job.wanted(split)).mean())


def right(job: Job, share: float | None) -> dict[str, float | None]:
    """A share that `judged` gave by its name, `acc` or, of images without labels, `agreement`; the other is None."""
    return {"acc": share, "agreement": None} if job.data.labelled else {"acc": None, "agreement": share}


def val_accuracy(job: Job, found: Pruned) -> float:
    """Of what is left of a network with a classifier, on search-validation; of images without labels the agreement."""
    acc = judged(job, network_of(found.arch, found.weights), "val")
    assert acc is not None, "an encoder has no accuracy"
    return acc


def harmed(job: Job, before: Pruned, after: Pruned) -> bool:
    """Whether training made what is left worse on search-validation: less often right, or an encoder's features further from the dense one's."""
    if job.encoder:
        distances = [mean_distance(network_of(one.arch, one.weights), job.network, job.data) for one in (before, after)]
        return distances[1] > distances[0]
    return val_accuracy(job, after) < val_accuracy(job, before)


def _in_int8(job: Job, network: Network, split: Split) -> float:
    """That of the file in int8 that would be delivered, in the target's runtime."""
    target, arch = job.table.target, network.arch
    with tempfile.TemporaryDirectory(prefix="judge-", dir=scratch_dir()) as folder:
        path = export_onnx(network, arch.example(target.batch), Path(folder) / f"network{SUFFIX}")
        session = RUNTIMES[target.runtime].from_file(quantised(job, arch, path, path), target)
        data = job.data.at(arch.image_size)
        found = [session.run(images.numpy()).argmax(1) for images, _ in data.loader(split, BATCH)]
        session.close()
    return float((np.concatenate(found) == job.wanted(split)).mean())
