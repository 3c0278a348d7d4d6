"""Static int8 quantisation of ONNX graphs, whose result ONNX Runtime and OpenVINO both run."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["calibration_images", "quantise"]

WEIGHTED = ("Conv", "Gemm", "MatMul")  # what has weights; softmax, norms and GELU stay in float, as is usual
BATCHES = 4  # of random images that tell the ranges where nobody gives any


def calibration_images(shape: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Random batches of this shape, the same ones on every day, for networks that are timed and not trained."""
    for seed in range(BATCHES):
        yield np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def quantise(graph: bytes, images: Iterable[NDArray[np.float32]]) -> bytes:
    """The graph with its convolutions and linear layers in int8, as pairs of quantise and dequantise (QDQ).

    Weights are signed and have a scale for each channel, activations are unsigned and have one each, told by the least and
    largest value on `images`, batches of the graph's input. Products of activations, as in attention, stay in float. On
    a CPU without VNNI, products of eight bits by eight overflow in ONNX Runtime's kernels: weights get seven there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # the package has no annotations
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory(prefix="nas-quantise-") as folder, _silence():
        source, out = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        quantize_static(
            source,
            out,
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            per_channel=True,
            reduce_range=not _has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return out.read_bytes()


def _has_vnni() -> bool:
    """Whether the CPU multiplies and adds bytes in one instruction, without overflow in between."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "vnni" in path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _silence() -> Iterator[None]:
    """Without the advice to optimise the graph first, which the session does afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
