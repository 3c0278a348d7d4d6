"""How good a network is in the numbers that its target computes with."""

import tempfile
from pathlib import Path

import torch

from nas.data import Data, Split
from nas.evaluate import accuracy, calibration_batches
from nas.runtimes import RUNTIMES, Session
from nas.runtimes.onnxruntime import export_onnx
from nas.runtimes.quantise import quantise
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Network

__all__ = ["accuracy_on", "int8_session"]

IMAGES = 256  # training images that tell the ranges of activations in int8
BATCH = 250


def accuracy_on(target: Target, network: Network, data: Data, split: Split, seed: int) -> float | None:
    """Share of a split's images whose best class is the label; on an int8 target that of the int8 file. None for an encoder.

    Args:
        target: where the network is to run.
        network: of any image size, to which the images are brought.
        data: whose labels.
        split: of it.
        seed: draws the training images that int8 is calibrated on.
    """
    arch = network.arch
    if not getattr(arch.blocks[-1], "classes", 0):
        return None
    data = data.at(arch.image_size)
    if target.dtype != "int8":
        return accuracy(network, data, split)
    session = int8_session(network, data, target, seed)
    hits = 0
    for images, labels in data.loader(split, BATCH):
        hits += int((session.run(images.numpy()).argmax(1) == labels.numpy()).sum())
    session.close()
    return hits / data.size(split)


def int8_session(network: Network, data: Data, target: Target, seed: int) -> Session:
    """The network as an int8 file, whose activations' ranges are told by training images, in the target's runtime."""
    found = torch.cat([images for images, _ in calibration_batches(data, seed, IMAGES)])
    whole = found[torch.arange(max(len(found), target.batch)) % len(found)]  # at least a batch, however few there are
    graph = export_onnx(network, network.arch.example(target.batch))
    content = quantise(graph, [part.numpy() for part in torch.split(whole, target.batch) if len(part) == target.batch])
    with tempfile.TemporaryDirectory(prefix="int8-", dir=scratch_dir()) as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(content)
        return RUNTIMES[target.runtime].from_file(path, target)
