"""The deliverable: an ONNX file, checked in ONNX Runtime against the network it came from."""

import contextlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.files import atomic_write
from nas.runtimes import RUNTIMES
from nas.target import Target
from search_spaces.errors import InputError

OPSET = 18  # from 20 on GELU is one operator, which ONNX Runtime 1.31 does not fuse

AGREEMENT, MAX_DIFF = (
    0.999,
    1e-4,
)  # share of images with the same best class; difference over the largest logit, if above 1

__all__ = ["Checked", "check_onnx", "export_onnx"]


@dataclass(frozen=True)
class Checked:
    """How an exported file compares with its network on the same images."""

    max_abs_diff: float  # of the logits
    top1_agreement: float  # share of images with the same best class
    images: int


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU in the order of operators that ONNX Runtime fuses; it misses the exporter's own."""
    from onnxscript import opset18 as op

    assert approximate == "none", "our blocks use the exact GELU"
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


def export_onnx(network: nn.Module, example: Tensor, path: Path) -> Path:
    """Write `network` in eval mode as ONNX for inputs of the shape of `example` (B, C, H, W); input `images`, output `logits`."""
    network.eval()
    chatter = io.StringIO()  # the exporter reports its steps on stdout, which belongs to results
    verbosity = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(chatter):
            program = torch.onnx.export(
                network,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.gelu.default: _gelu},
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(verbosity)
    assert program is not None
    atomic_write(path, program.model_proto.SerializeToString())
    return path


@torch.no_grad()
def check_onnx(path: Path, network: nn.Module, images: Tensor, target: Target) -> Checked:
    """Run the file and the network on `images` (N, C, H, W).

    Raises:
        InputError: file and network disagree; the file is removed then.
    """
    count = len(images)
    session = RUNTIMES[target.runtime].from_file(path, target)
    wanted = network.eval()(images).numpy()
    found = session.run(images.numpy())
    agreement = float((wanted.argmax(1) == found.argmax(1)).mean())
    differing = float(np.abs(wanted - found).max())
    if agreement < AGREEMENT or differing > MAX_DIFF * max(1.0, float(np.abs(wanted).max())):
        path.unlink()
        raise InputError(
            f"{path.name} gives other scores than the network in {target.name} (largest difference {differing:.2g}, same best "
            f"class on {agreement:.2%} of {count} images) and was removed; report this network"
        )
    return Checked(differing, agreement, count)
