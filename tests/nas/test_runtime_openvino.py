"""OpenVINO: in float32 it gives the network's scores, and what it cannot run is said in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nas.runtimes import RUNTIMES, openvino
from nas.runtimes.onnxruntime import export_onnx
from nas.runtimes.random_networks import random_network
from nas.target import Target
from search_spaces import SPACES
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, Head, Stem
from search_spaces.errors import InputError

TARGET = Target.parse("cpu-openvino-fp32-b1-t1")
ARCH = Arch(16, 3, (Stem(8), MB4D(ratio=1), MB3D(heads=2, key_dim=4, value_dim=8, ratio=1), Head(3)))


@pytest.mark.parametrize("space", ["hybrid_digits", "vit_digits"])
def test_scores_are_those_of_torch_in_float32(space: str) -> None:
    """Those of bfloat16, in which a CPU with AMX computes unless told, are off by 0.006 and more."""
    arch = SPACES[space](classes=10).largest
    given = arch.example(3)
    with torch.no_grad():
        wanted = random_network(arch, given).eval()(given).numpy()
    np.testing.assert_allclose(
        RUNTIMES["openvino"].from_arch(arch, TARGET).run(given.numpy()), wanted, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("stays", [0, 10**9], ids=["large", "small"])
def test_what_was_closed_opens_again_with_the_same_scores(stays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "STAYS", stays)
    session, given = openvino.from_arch(ARCH, TARGET), ARCH.example(2).numpy()
    before = session.run(given)
    session.close()
    assert session._request is None and (session._network is None) == (stays == 0)
    assert np.array_equal(session.run(given), before)
    session.reopen()
    assert np.array_equal(session.run(given), before) and len(session.time(3)) == 3
    assert not any(isinstance(held, bytes) for held in vars(session).values()), (
        "hundreds of large ones must fit in memory"
    )
    folder = session._compiled.parent
    assert folder.exists()
    del session
    assert not folder.exists()


def exported(path: Path, batch: int = 1, change: Callable[[onnx.GraphProto], None] = lambda graph: None) -> None:
    model = onnx.load_from_string(export_onnx(ARCH.build(), ARCH.example(batch)))
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def unknown(graph: onnx.GraphProto) -> None:
    graph.node[-1].op_type = "Nonsense"


def vector(path: Path) -> None:
    path.write_bytes(export_onnx(torch.nn.Linear(4, 2), torch.zeros(1, 4)))


def without_weights(path: Path) -> None:
    torch.onnx.export(ARCH.build().eval(), (ARCH.example(),), path, dynamo=True, verbose=False)
    path.with_name(path.name + ".data").unlink()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b"nothing of the kind"), "is not an ONNX file"),
        (lambda path: path.write_bytes(b""), "OpenVINO cannot load .*Unable to read the model"),
        (without_weights, r"OpenVINO cannot load .*net\.onnx\.data"),
        (lambda path: exported(path, change=unknown), "OpenVINO cannot load .*Nonsense"),
        (vector, "expected one input of images"),
        (lambda path: exported(path, batch=2), "takes batches of 2"),
    ],
    ids=["bytes", "empty", "no weights", "unknown operator", "vector", "batch"],
)
def test_a_file_that_it_cannot_run_is_one_line_that_says_why(
    write: Callable[[Path], None], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.onnx"
    write(path)
    capfd.readouterr()
    with pytest.raises(InputError, match=says) as caught:
        RUNTIMES["openvino"].from_file(path, TARGET)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "src/" not in str(caught.value)
    assert says != "is not an ONNX file" or not capfd.readouterr().err, "OpenVINO complains of other formats on its own"
