"""The exported file: the network's outputs, in operators that ONNX Runtime fuses."""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from nas.export import check_onnx, export_onnx
from nas.target import Target
from nas.train.retrain import fresh_network
from search_spaces import InputError
from tests.search_spaces.test_arch import SMALL

TARGET = Target.parse("cpu-ort-fp32-b2-t1")


def test_outputs_agree_and_another_network_does_not(tmp_path: Path) -> None:
    network = fresh_network(SMALL, 0)
    path = export_onnx(network, SMALL.example(2), tmp_path / "a.onnx")
    images = SMALL.example(9)  # one more than whole batches
    checked = check_onnx(path, network, images, TARGET)
    assert checked.images == 9
    assert checked.max_abs_diff <= 1e-5
    assert checked.top1_agreement == 1
    with pytest.raises(InputError, match="gives other scores than the network"):
        check_onnx(path, fresh_network(SMALL, 1), images, TARGET)
    assert not path.exists()


def test_every_gelu_is_fused(tmp_path: Path) -> None:
    """Left in pieces or as the standard operator, GELU makes the file slower than the table predicts."""
    path = export_onnx(fresh_network(SMALL, 0), SMALL.example(), tmp_path / "a.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert not [node for node in nodes if node.op_type == "Erf"]
    fused = [node for node in nodes if node.domain == "com.microsoft" and node.op_type.endswith("Gelu")]
    assert len(fused) == 3
