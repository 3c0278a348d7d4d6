"""Static int8 quantisation of ONNX graphs, whose result ONNX Runtime and OpenVINO both run."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.errors import InputError

__all__ = ["calibration_images", "check_quantised", "is_quantised", "quantise"]

WEIGHTED = ("Conv", "Gemm", "MatMul")  # what has weights; softmax, norms and GELU stay in float, as is usual
FLOAT_RESULTS = ("Gemm", "MatMul")  # to round these saves nothing, as float follows; a convolution in int8 gives int8
BATCHES = 4  # of random images that tell the ranges where nobody gives any


def calibration_images(shape: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Random batches of this shape, the same ones on every day, for networks that are timed and not trained."""
    for seed in range(BATCHES):
        yield np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def quantise(graph: bytes, images: Iterable[NDArray[np.float32]]) -> bytes:
    """The graph with its convolutions and linear layers in int8, as pairs of quantise and dequantise (QDQ).

    Weights are signed and have a scale for each channel, activations are unsigned and have one each, told by the least and
    largest value on `images`, batches of the graph's input. Products of activations, as in attention, stay in float, and so do
    convolutions that make several channels of each one. On a CPU without VNNI, products of eight bits by eight overflow in ONNX Runtime's
    kernels: weights get seven there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = _simplified(graph)
    given = model.graph.input[0].name

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # the package has no annotations
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {given: batch}

    with tempfile.TemporaryDirectory(prefix="quantise-", dir=scratch_dir()) as folder, _silence():
        out = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            out,
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            nodes_to_exclude=_kept_in_float(model),
            per_channel=True,
            reduce_range=not _has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(FLOAT_RESULTS)},
        )
        return out.read_bytes()


def is_quantised(model: Any) -> bool:
    """Whether an ONNX model computes in int8, if only in parts."""
    return any("QuantizeLinear" in node.op_type for node in model.graph.node)


def check_quantised(quantised: bool, name: str, target: Target) -> None:
    """Refuse a file in float on a target of int8, which would run it as it is.

    Raises:
        InputError: the target's numbers are int8, and the file's are not.
    """
    if target.dtype == "int8" and not quantised:
        mend = "time its architecture there, or pass a target of fp32"
        raise InputError(f"{name} computes in float, and target {target.name} takes files in int8; {mend}")


def _simplified(graph: bytes) -> Any:
    """The graph as an ONNX model in which each linear layer, with its bias, and each GELU is one operator.

    Otherwise quantising parts them: biases would be added, and GELUs worked out, by operators of their own.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization.fusions import FusionGelu
    from onnxruntime.quantization.onnx_model import ONNXModel

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="quantise-", dir=scratch_dir()) as folder:
        path = Path(folder) / "basic.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load(path)
    editable = ONNXModel(onnx.shape_inference.infer_shapes(model))  # shapes first: it knows none of the fused GELU's
    FusionGelu(editable).apply()
    editable.topological_sort()
    return editable.model


def _kept_in_float(model: Any) -> list[str]:
    """The names of products of two activations, and of convolutions that make several channels of each one.

    For those ONNX Runtime takes several times as long in int8 as in float (`benchmarks/int8_widening.py`).
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "MatMul" and shapes.keys().isdisjoint(node.input))
        or (node.op_type == "Conv" and _multiplies(node, shapes.get(node.input[1], (1, 1))))
    ]


def _multiplies(convolution: Any, shape: Sequence[int]) -> bool:
    """Whether it has several filters, of this shape together, for each channel and none for two."""
    groups = next((int(attribute.i) for attribute in convolution.attribute if attribute.name == "group"), 1)
    return shape[1] == 1 < groups < shape[0]


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
