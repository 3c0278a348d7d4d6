"""Peak memory, measured in processes of their own."""

from pathlib import Path

import pytest
import torch

from nas.peak_memory import peak_mb, weights_mb
from nas.runtimes.onnxruntime import export_onnx
from nas.target import Target
from search_spaces import Arch
from search_spaces.blocks import Head, Stem
from search_spaces.errors import InputError

TARGET = Target.parse("cpu-ort-fp32-b1-t1")


def heavy(classes: int) -> Arch:
    """Next to nothing but a classifier."""
    return Arch(16, 3, (Stem(256), Head(classes)))


ONCE, TWICE = heavy(20_000), heavy(40_000)


@pytest.mark.parametrize("target", ["cpu-ort-fp32-b1-t1", "cpu-eager-fp32-b1-t1"])
def test_a_network_with_twice_the_weights_takes_twice_the_memory(target: str) -> None:
    once, twice, again = peak_mb([ONCE, TWICE, ONCE], Target.parse(target))
    assert once == again
    assert 20 < weights_mb(ONCE) < 25
    assert weights_mb(ONCE) < once < 3 * weights_mb(ONCE)
    assert 1.7 < twice / once < 2.3


def test_a_file_takes_what_its_network_takes_and_answers_come_in_order_from_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.peak_memory.SHARE", 2)
    (tmp_path / "left").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "left"))
    path = tmp_path / "once.onnx"
    path.write_bytes(export_onnx(ONCE.build(), ONCE.example()))
    small, once, of_file, smaller = peak_mb([heavy(3_000), ONCE, path, heavy(1_000)], TARGET)
    assert smaller < small < once / 3
    assert of_file == pytest.approx(once, rel=0.2)
    assert not [path for path in (tmp_path / "left").glob("nas-*/*") if path.is_dir()], (
        "folders of processes that ended"
    )


def in_the_server(code: str) -> str:
    return f"import os, time; import nas.peak_process as p; {code}; p.serve()"


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (in_the_server("p.measure = lambda *given: os.kill(os.getpid(), 9)"), r"was killed \(signal 9\).*free some"),
        (in_the_server("p.LIMIT_S, p.measure = 1, lambda *given: time.sleep(60)"), "took over .* s to be loaded"),
        (in_the_server("os.kill(os.getpid(), 9)"), r"was killed \(signal 9\).*free some"),
    ],
)
def test_a_process_that_is_killed_or_hangs_ends_in_a_line(
    server: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.peak_memory.SERVER", server)
    with pytest.raises(InputError, match=said) as caught:
        peak_mb([ONCE], TARGET)
    assert f"network {ONCE.id}" in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_of_the_program_is_none_of_the_input(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nas.peak_memory.SERVER", in_the_server("p.measure = lambda *given: 1 / 0"))
    with pytest.raises(RuntimeError, match="on stderr"):
        peak_mb([ONCE], TARGET)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_cannot_be_measured_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 999 threads"):
        peak_mb([ONCE], Target.parse("cpu-ort-fp32-b1-t999"))
    (tmp_path / "none.onnx").write_bytes(b"nothing")
    for path, said in ((tmp_path / "none.onnx", "export it again"), (tmp_path / "w.onnx", "does not exist")):
        with pytest.raises(InputError, match=said) as caught:
            peak_mb([path], TARGET)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_where_the_peak_cannot_be_set_back_getting_ready_counts_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (usual,) = peak_mb([ONCE], TARGET)
    assert "getting it ready" not in capsys.readouterr().err
    monkeypatch.setattr("nas.peak_memory.SERVER", in_the_server("p.CLEAR = p.STATUS = p.Path('/none')"))
    (more,) = peak_mb([ONCE], TARGET)
    assert usual < more < 10 * usual
    assert f"network {ONCE.id} counts getting it ready" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_allocator_is_asked() -> None:
    once, twice = peak_mb([ONCE, TWICE], Target.parse("cuda-eager-fp32-b1"))
    assert weights_mb(ONCE) < once < 1.5 * weights_mb(ONCE) and 1.9 < twice / once < 2.1
