"""What is of the runtimes of torch alone."""

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch

from nas.plan import make_plan, rows_to_time
from nas.runtimes import RUNTIMES, compiled, torch_session
from nas.runtimes.torch_session import conditions
from nas.target import Target
from nas.timing import time_networks
from search_spaces import SPACES, zoo
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from tests.contracts.test_runtimes import ARCH
from tests.nas.toy import toy_vit

ONE, TWO = (Target.parse(f"cpu-eager-fp32-b1-t{threads}") for threads in (1, 2))
UNNEEDED = ("optuna", "ray", "fvcore", "thop", "openvino", "onnxruntime", "onnx")


def test_measuring_in_torch_needs_none_of_the_packages_that_a_gpu_server_may_lack() -> None:
    script = (
        "import sys, nas.runtimes.eager, nas.runtimes.compiled, nas.runtimes.graph, nas.measure, nas.timing, nas.plan\n"
        "from nas.target import Target, fingerprint\n"
        "from tests.nas.test_torch_runtimes import ARCH\n"
        "target = Target.parse('cpu-eager-fp32-b1-t1')\n"
        "fingerprint(target), nas.plan.macs(ARCH), nas.runtimes.eager.from_arch(ARCH, target).time(1)\n"
        f"print([name for name in {UNNEEDED!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "[]\n"


def test_sessions_of_different_threads_leave_each_other_and_the_process_alone() -> None:
    seen = []
    first, second = (RUNTIMES["eager"].from_arch(ARCH, target) for target in (ONE, TWO))
    with patch.object(torch_session, "_nothing", lambda: seen.append(torch.get_num_threads())):
        before = torch.get_num_threads()
        for session in (first, second, first):
            session.time(1)
            assert torch.get_num_threads() == before and not torch.is_inference_mode_enabled()
    assert seen == [1, 1, 2, 2, 1, 1]


def test_fp32_is_not_tf32_and_what_the_process_had_set_comes_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), conditions(ONE):
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_closed_session_holds_no_weights_and_an_open_one_holds_fresh_ones() -> None:
    session = RUNTIMES["eager"].from_arch(ARCH, ONE)
    assert isinstance(session, torch_session.Session)
    tensors = [*session._network.parameters(), *session._network.buffers()]
    session.close()
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == 0
    session.reopen()
    places = [tensor.data_ptr() for tensor in tensors if tensor.numel()]
    assert len(set(places)) == len(places) and all(place % 64 == 0 for place in places), (
        "aligned, and in no mapped file"
    )


def thresholded() -> Arch:
    space = toy_vit()
    return next(arch for arch in space.probes() if arch.locations and arch != arch.keeping(adaptive=False))


def test_networks_with_thresholds_run_one_by_one_in_eager_torch() -> None:
    arch = thresholded()
    session = RUNTIMES["eager"].from_arch(arch, ONE)
    assert session.run(arch.example(3).numpy()).shape == (3, arch.classes)
    with pytest.raises(InputError, match="takes images one by one"):
        RUNTIMES["eager"].from_arch(arch, Target.parse("cpu-eager-fp32-b2-t1"))
    with pytest.raises(InputError, match="time it on a target of fp32"):
        RUNTIMES["eager"].from_arch(arch, Target.parse("cpu-eager-bf16-b1-t1"))
    with pytest.raises(InputError, match="compiled does not take"):
        RUNTIMES["compiled"].from_arch(arch, Target.parse("cpu-compiled-fp32-b1-t1"))


@pytest.mark.parametrize("name", ["vit_digits", "hybrid_digits"])
def test_where_thresholds_cannot_be_timed_all_other_rows_are(name: str) -> None:
    space = SPACES[name]()
    every, plain = make_plan(space, None, 0), make_plan(space, None, 0, thresholds=False)
    assert set(every.probes) - set(plain.probes) == {
        arch for arch in every.probes if arch != arch.keeping(adaptive=False)
    }
    assert (
        {row for arch in plain.archs for row in arch.rows}
        == set(rows_to_time(space, thresholds=False))
        < set(space.rows)
    )
    targets = {
        name: Target.parse(name).thresholds
        for name in ("cpu-ort-fp32-b1-t1", "cpu-ort-fp32-b2-t1", "cuda-graph-bf16-b1")
    }
    assert [*targets.values()] == [True, False, False]


def test_networks_are_timed_in_eager_torch_by_the_protocol_of_all_runtimes() -> None:
    small, large = zoo.arch("sret_t").at(32), zoo.arch("sret_t").at(64)
    found = time_networks([small, large], ONE, reference=small, rounds=2)
    assert min(found[0].ms, found[1].ms) > 0


def test_what_compiling_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert str(compiled.lacks("cpu")) == (
        "torch.compile needs a C++ compiler and finds no no-such-compiler; install g++, or name another in CXX"
    )
    with pytest.raises(InputError, match="cannot be measured here"):
        Target.parse("cpu-compiled-fp32-b1-t1").check_here()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(RUNTIMES["graph"].lacks("cuda"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device" in str(RUNTIMES["compiled"].lacks("cuda"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(compiled.lacks("cpu") is not None, reason="no C++ compiler")
def test_more_networks_are_compiled_than_torch_keeps_of_one_function_and_none_anew() -> None:
    import torch._dynamo.config as dynamo
    from torch._dynamo.utils import counters

    target = Target.parse("cpu-compiled-fp32-b1-t1")
    archs = [ARCH.with_classes(classes) for classes in (2, 3, 4)]
    counters.clear()
    with dynamo.patch(recompile_limit=1):  # 8, unless told
        sessions = [RUNTIMES["compiled"].from_arch(arch, target) for arch in archs]
    assert counters["stats"]["unique_graphs"] == len(archs)
    for arch, session in zip(archs, sessions, strict=True):
        session.close()
        session.reopen()
        eager = RUNTIMES["eager"].from_arch(arch, ONE)
        images = arch.example().numpy()
        assert np.abs(session.run(images) - eager.run(images)).max() < 1e-5
    assert counters["stats"]["unique_graphs"] == len(archs) and not counters["graph_break"]
