"""The exported file: the network's outputs, in operators that ONNX Runtime fuses."""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch

from nas.export import check_onnx, export_onnx
from nas.runtimes.onnxruntime import export_onnx as export_fast
from nas.target import Target
from nas.train.retrain import fresh_network
from search_spaces import Arch, InputError
from search_spaces.blocks import MB3D, MB4D, Embed, Head, Position, Stem
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


FORMS = Arch(
    64,
    3,
    (
        Stem(16),
        Position(),
        MB4D(2, mixer="depthwise", residual="coefficients"),
        Embed(24),
        MB3D(2, 4, 8, 2, loops=2, nll=1, groups=(4, 2), orders=("strided", "permuted"), residual="coefficients"),
        Embed(32, "separable"),
        MB3D(2, 4, 8, 2, groups=(4,), orders=("permuted",), inverse=False, bias=False, residual="plain"),
        Embed(64, "depthwise", norm=False),
        MB3D(2, 4, 8, 2, 0.5, groups=(2,), orders=("contiguous",)),
        Head(5, mean_first=True),
    ),
)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_form_of_block_is_exported(batch: int, tmp_path: Path) -> None:
    """By dynamo for users, and by the fast exporter for timing."""
    network = fresh_network(FORMS, 0).eval()
    target = Target.parse(f"cpu-ort-fp32-b{batch}-t1")
    path = export_onnx(network, FORMS.example(batch), tmp_path / "a.onnx")
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert check_onnx(path, network, images, target).max_abs_diff <= 1e-4
    (tmp_path / "fast.onnx").write_bytes(export_fast(network, FORMS.example(batch)))
    assert check_onnx(tmp_path / "fast.onnx", network, images, target).max_abs_diff <= 1e-4


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
