"""`nas targets` says what this machine can measure, and what it lacks for the rest."""

import json
import os
import sys
from importlib import metadata
from unittest.mock import patch

import pytest

from nas import runtimes
from nas.cli.main import main
from nas.runtimes import RUNTIMES, Runtime


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with patch.object(sys, "argv", ["nas", "targets", *words]), pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_every_device_runtime_and_type_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "--json"))
    known = {
        f"{device}-{name}-{dtype}-b<N>{'-t<N>' if device == 'cpu' else ''}"
        for name, runtime in RUNTIMES.items()
        for device, dtypes in runtime.dtypes.items()
        for dtype in dtypes
    }
    assert {"cpu-eager-bf16-b<N>-t<N>", "cuda-graph-fp32-b<N>"} < known == {line["target"] for line in found["targets"]}
    assert all(line["measurable"] == (line["lacks"] is None) for line in found["targets"])
    (ort,) = (line for line in found["targets"] if line["target"] == "cpu-ort-fp32-b<N>-t<N>")
    assert ort == {
        "target": "cpu-ort-fp32-b<N>-t<N>",
        "package": f"onnxruntime {metadata.version('onnxruntime')}",
        "measurable": True,
        "lacks": None,
    }
    assert found["cores"] == os.cpu_count() and found["cpu"]


def test_a_package_that_is_missing_is_named_with_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    absent = Runtime("nas.runtimes.eager", "no-such-package", "fast", {"cpu": ("fp32",)})
    with patch.dict(runtimes.RUNTIMES, {"fast": absent}, clear=True):
        (line,) = json.loads(told(capsys, "--json"))["targets"]
        assert line == {
            "target": "cpu-fast-fp32-b<N>-t<N>",
            "package": None,
            "measurable": False,
            "lacks": 'no-such-package is not installed; pip install "vit-nas[fast]"',
        }
        assert 'pip install "vit-nas[fast]"' in told(capsys)
