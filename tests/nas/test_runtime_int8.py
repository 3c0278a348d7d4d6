"""Networks in int8: really so, near what they were, and the same in both runtimes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from nas.runtimes import RUNTIMES, onnxruntime
from nas.runtimes.onnxruntime import export_onnx, random_graph
from nas.runtimes.quantise import calibration_images, quantise
from nas.target import Target
from search_spaces import SPACES, zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, Head, Stem, TokenPrune
from search_spaces.errors import InputError

ORT, OPENVINO = Target.parse("cpu-ort-int8-b1-t1"), Target.parse("cpu-openvino-int8-b1-t1")
FLOAT = Target.parse("cpu-ort-fp32-b1-t1")
ARCHS = [SPACES["hybrid_digits"](classes=10).largest, SPACES["vit_digits"](classes=10).largest]


def images(arch: Arch, count: int) -> np.ndarray:
    return np.concatenate([arch.example(seed=seed).numpy() for seed in range(count)])


@pytest.mark.parametrize("arch", ARCHS, ids=["hybrid", "vit"])
def test_scores_in_int8_are_near_those_in_float(arch: Arch) -> None:
    given = images(arch, 8)
    wanted = RUNTIMES["ort"].from_arch(arch, FLOAT).run(given)
    found = [RUNTIMES[target.runtime].from_arch(arch, target).run(given) for target in (ORT, OPENVINO)]
    for scores in found:
        assert np.corrcoef(scores.ravel(), wanted.ravel())[0, 1] > 0.99
        assert not np.array_equal(scores, wanted)
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.99


def test_every_convolution_and_linear_layer_has_weights_of_eight_bits() -> None:
    usual = random_graph(ARCHS[0], FLOAT)
    graph = onnx.load_from_string(quantise(usual, calibration_images((1, 3, 64, 64)))).graph
    of_bytes = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    made = {node.output[0]: node for node in graph.node}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for node in weighted:
        assert made[node.input[1]].op_type == "DequantizeLinear" and made[node.input[1]].input[0] in of_bytes
    rounded = {
        made[node.input[0]].op_type for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made
    }
    assert "Conv" in rounded and "Gemm" not in rounded, "float follows a linear layer"
    products = sum(node.op_type == "MatMul" for node in graph.node)
    both = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in onnx.load_from_string(usual).graph.node)
    assert len(weighted) == both - products > 5 and products == 2 * sum(
        node.op_type == "Softmax" for node in graph.node
    )


def test_convolutions_that_make_several_channels_of_each_one_stay_in_float() -> None:
    convolutions = [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 12, 3, groups=4),
        nn.Conv2d(12, 6, 3, groups=2),
        nn.Conv2d(6, 6, 1),
    ]
    graph = export_onnx(nn.Sequential(*convolutions).eval(), torch.zeros(1, 4, 16, 16))
    found = onnx.load_from_string(quantise(graph, calibration_images((1, 4, 16, 16)))).graph
    made = {node.output[0]: node.op_type for node in found.node}
    kinds = [made.get(node.input[1]) for node in found.node if node.op_type == "Conv"]
    assert kinds == ["DequantizeLinear", None, "DequantizeLinear", "DequantizeLinear"]


def test_the_runtime_leaves_those_of_mobile_former_in_float() -> None:
    """Which widens its maps by them, and would take longer in int8 than in float."""
    arch = zoo.arch("mobile_former_26m")
    usual = onnx.load_from_string(random_graph(arch, FLOAT)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in usual.initializer}
    convolutions = [node for node in usual.node if node.op_type == "Conv"]
    groups = [next(one.i for one in node.attribute if one.name == "group") for node in convolutions]
    filters = [shapes[node.input[1]] for node in convolutions]
    widening = sum(own[1] == 1 and own[0] > count for own, count in zip(filters, groups, strict=True))
    session = onnxruntime.from_arch(arch, ORT)
    found = Counter(node.op_type for node in onnx.load(session._graph).graph.node)
    assert found["Conv"] == widening > 0 and found["QLinearConv"] == len(convolutions) - widening > 0


@pytest.mark.parametrize("arch", ARCHS, ids=["hybrid", "vit"])
def test_the_runtime_works_in_int8_where_weights_are_and_fuses_the_rest(arch: Arch) -> None:
    """Not in more operators than in float: in those, small networks would take longer than they do in float."""
    sessions = [onnxruntime.from_arch(arch, target) for target in (ORT, FLOAT)]
    found, usual = (Counter(node.op_type for node in onnx.load(session._graph).graph.node) for session in sessions)
    assert found["QLinearConv"] == usual["Conv"] > 0 and found["QGemm"] == usual["Gemm"] > 0
    assert found["Conv"] == found["Gemm"] == found["Erf"] == 0 and found["Gelu"] == usual["Gelu"] > 0
    products = ("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulIntegerToFloat")
    assert [found[kind] for kind in products] == [usual[kind] for kind in products], "those of attention are in float"


def test_a_file_runs_on_a_target_of_int8_where_it_is_in_int8(tmp_path: Path) -> None:
    arch = Arch(16, 3, (Stem(8), MB4D(ratio=1), Head(3)))
    usual, made = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    model = onnx.load_from_string(random_graph(arch, FLOAT))
    first = next(node for node in model.graph.node if node.input[:1] == [model.graph.input[0].name])
    first.input[0] = model.graph.input[0].name = "pixels"
    usual.write_bytes(model.SerializeToString())
    made.write_bytes(quantise(usual.read_bytes(), calibration_images((1, 3, 16, 16))))
    for target in (ORT, OPENVINO):
        with pytest.raises(InputError, match=r"float\.onnx computes in float, and target cpu-\w+-int8-b1-t1 takes"):
            RUNTIMES[target.runtime].from_file(usual, target)
        scores = RUNTIMES[target.runtime].from_file(made, target).run(images(arch, 2))
        np.testing.assert_allclose(scores, RUNTIMES[target.runtime].from_arch(arch, target).run(images(arch, 2)))


def test_the_ranges_are_those_of_the_images_given() -> None:
    arch = ARCHS[0]
    graph = random_graph(arch, FLOAT)
    usual, brighter = (
        quantise(graph, [scale * batch for batch in calibration_images((1, 3, 64, 64))]) for scale in (1.0, 10.0)
    )
    assert usual != brighter
    assert usual == quantise(graph, calibration_images((1, 3, 64, 64))), "the same on every day"


def test_thresholds_are_refused() -> None:
    arch = Arch(16, 3, (Stem(8), MB3D(heads=2, key_dim=4, value_dim=8), TokenPrune(8, True), MB3D(2, 4, 8), Head(3)))
    for target in (ORT, OPENVINO, Target.parse("cpu-openvino-fp32-b1-t1")):
        with pytest.raises(InputError, match="has thresholds"):
            RUNTIMES[target.runtime].from_arch(arch, target)


def test_openvino_computes_in_float32_with_the_threads_of_the_target() -> None:
    arch = Arch(16, 3, (Stem(8), MB4D(ratio=1), Head(3)))
    session = RUNTIMES["openvino"].from_arch(arch, Target.parse("cpu-openvino-fp32-b1-t2"))
    compiled = session._opened().get_compiled_model()
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) in ("<Type: 'float32'>", "f32", "float32")
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    with torch.no_grad():
        assert np.isfinite(session.run(images(arch, 2))).all()
