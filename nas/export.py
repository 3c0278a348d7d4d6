"""The deliverable: an ONNX file, and the check of a file of any format against the network it came from."""

import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.files import atomic_write
from nas.runtimes import RUNTIMES
from nas.runtimes.openvino import SUFFIX as OPENVINO
from nas.runtimes.openvino import weights_of
from nas.target import Target
from search_spaces.arch import Network
from search_spaces.blocks.token_prune import TokenPruneModule
from search_spaces.errors import InputError
from search_spaces.tokens import Chosen, unpack

SUFFIX = ".onnx"
OPSET = 18  # from 20 on GELU is one operator, which ONNX Runtime 1.31 does not fuse

AGREEMENT, MAX_DIFF = (
    0.999,
    1e-4,
)  # share of images with the same best class; difference over the largest logit, if above 1
CLEAR = 1e-4  # of the mean score: a patch this near to what decides whether it stays is dropped or not by rounding
ALIKE = 1e-5  # between cosines: of patches this near to each other, rounding decides which are merged

__all__ = ["Checked", "check_file", "export_onnx", "write_onnx"]


@dataclass(frozen=True)
class Checked:
    """How an exported file compares with its network on the same images."""

    max_abs_diff: (
        float  # of the logits; of networks that drop tokens, on the images whose patches rounding does not decide on
    )
    top1_agreement: float  # share of images with the same best class
    images: int


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU, exact or by tanh, in the order of operators that ONNX Runtime fuses; it misses the exporter's own."""
    from onnxscript import opset18 as op

    if approximate == "tanh":
        three: Any = 3.0  # whose type variable leaves out float
        inner = op.Mul(op.Add(x, op.Mul(op.Pow(x, three), 0.044715)), math.sqrt(2 / math.pi))
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


def export_onnx(
    network: nn.Module, example: Tensor, path: Path, notes: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Write `network` in eval mode as ONNX for inputs of the shape of `example` (B, C, H, W); input `images`, output `logits`; `notes` are its metadata.

    A network with thresholds keeps its data-dependent counts of patches, for images one by one.

    Raises:
        InputError: a network with thresholds, and several images.
    """
    if len(example) > 1 and any(part.threshold is not None for part in _locations(network)):
        raise InputError(
            "a network with thresholds keeps of each image a number of its own, so its file takes images one by one: pass a target "
            "of batch 1, or --static for the file of the network that keeps the mean numbers"
        )
    return write_onnx(network, (example,), path, ["images"], ["logits"], notes)


def write_onnx(
    network: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a network in eval mode as ONNX, for inputs of the shapes of `examples`, with `notes` in its metadata."""
    network.eval()
    chatter = io.StringIO()  # the exporter reports its steps on stdout, which belongs to results
    verbosity = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(chatter):
            program = torch.onnx.export(
                network,
                examples,
                input_names=inputs,
                output_names=outputs,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.gelu.default: _gelu},
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(verbosity)
    assert program is not None
    model = program.model_proto
    for name, value in notes.items():
        model.metadata_props.add(key=name, value=value)
    atomic_write(path, model.SerializeToString())
    return path


@torch.no_grad()
def check_file(path: Path, network: Network, images: Tensor, target: Target) -> Checked:
    """Run the file, on a target that reads it, and the network on `images` (N, C, H, W).

    A file in int8 gives other scores by rounding: how far they are off is told, and not judged.

    In networks that drop tokens, rounding decides on patches whose scores lie next to what they are compared with. On images
    with such patches the best class alone is compared, unless all images have some.

    Raises:
        InputError: file and network disagree, or the file gives scores that are not finite; it is removed then.
    """
    count = len(images)
    session = RUNTIMES[target.runtime].from_file(path, target)
    trace: list[Chosen] = []
    network.eval()
    wanted = network(images, trace).numpy()
    found = session.run(images.numpy())
    agreement = float((wanted.argmax(1) == found.argmax(1)).mean())
    clear = _clear(network, trace, len(images))
    differing = float(np.abs(wanted - found)[clear if clear.any() else ...].max())
    within = agreement >= AGREEMENT and differing <= MAX_DIFF * max(1.0, float(np.abs(wanted).max()))
    if not (within if target.dtype != "int8" else np.isfinite(differing)):
        for own in (path, weights_of(path)) if path.suffix == OPENVINO else (path,):
            own.unlink()
        raise InputError(
            f"{path.name} gives other scores than the network in {target.name} (largest difference {differing:.2g}, same best "
            f"class on {agreement:.2%} of {count} images) and was removed; report this network"
        )
    return Checked(differing, agreement, count)


def _locations(network: nn.Module) -> list[TokenPruneModule]:
    return [part for part in network.modules() if isinstance(part, TokenPruneModule)]


def _clear(network: nn.Module, trace: list[Chosen], count: int) -> NDArray[np.bool_]:
    """(images,) whether every patch was kept or dropped by more than rounding, at each location that is traced."""
    clear = np.ones(count, dtype=bool)
    lengths = torch.zeros(0)
    for part, chosen in zip(_locations(network), trace, strict=True):
        if chosen.similarity is not None:
            pairs = zip(chosen.similarity, chosen.kept, strict=True)
            clear &= np.array([_merge_margin(similarity, stays) > ALIKE for similarity, stays in pairs])
            continue
        scores, kept = chosen.scores, chosen.kept
        packed = scores.ndim == 1
        pairs = (
            zip(unpack(scores, lengths), unpack(kept, lengths), strict=True)
            if packed
            else zip(scores, kept, strict=True)
        )
        cut = None if part.threshold is None else float(part.threshold) / part.total
        clear &= np.array([_margin(own, stays, cut) > CLEAR / part.total for own, stays in pairs])
        lengths = chosen.counts
    return clear


def _merge_margin(similarity: Tensor, stays: Tensor) -> float:
    """How far the cosines (a, b) of an image are from another choice: of the patches (a,) that stay, or of what others are merged into."""
    best = similarity.amax(1)
    nearest = similarity[~stays].topk(min(2, similarity.shape[1]), 1).values
    other = float((nearest[:, 0] - nearest[:, 1]).min()) if nearest.shape[1] > 1 else math.inf
    return min(other, float(best[~stays].min() - best[stays].max()) if stays.any() else math.inf)


def _margin(scores: Tensor, kept: Tensor, cut: float | None) -> float:
    """How far the scores (n,) of an image are from what decides: a threshold, or those of the patches on the other side.

    The best patch stays whatever the threshold: of it, either that or the second best must be far.
    """
    if cut is None:
        return float(scores[kept].min() - scores[~kept].max()) if not kept.all() else math.inf
    if len(scores) == 1:
        return math.inf
    best, others = scores.max(), scores.sort(descending=True).values[1:]
    return float(torch.minimum((others - cut).abs().min(), torch.maximum(best - cut, best - others[0])))
