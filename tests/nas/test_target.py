import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from nas import target as target_module
from nas.target import Fingerprint, Target, fingerprint, machine_slug, same_machine
from search_spaces.errors import InputError


def test_a_name_is_parsed_and_given_back() -> None:
    target = Target.parse("cpu-ort-fp32-b8-t2")
    assert (target.device, target.runtime, target.dtype, target.batch, target.threads) == ("cpu", "ort", "fp32", 8, 2)
    assert target.name == "cpu-ort-fp32-b8-t2"
    target = Target.parse("cuda-eager-bf16-b64")
    assert (target.device, target.dtype, target.batch, target.threads) == ("cuda", "bf16", 64, None)
    assert target.name == "cuda-eager-bf16-b64"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cpu",
        "cpu-ort-fp32-b1",  # a CPU target names its threads
        "cpu-ort-fp32-b0-t1",
        "cpu-ort-fp32-b1-t0",
        "cpu-ort-fp32-b1-t01",
        "cpu-ort-bf16-b1-t1",
        "cpu-tvm-fp32-b1-t1",
        "cuda-ort-fp32-b1-t1",
        "cuda-eager-fp32-b1-t1",  # a CUDA target names none
        "cpu-compiled-bf16-b1-t1",
        "cpu-graph-fp32-b1-t1",
        "CPU-ORT-FP32-B1-T1",
        "cpu-ort-fp32-b1-t1 ",
    ],
)
def test_what_this_version_cannot_measure_is_refused_in_one_line_that_names_what_it_can(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Target.parse(name)
    message = str(caught.value)
    assert repr(name) in message and "cpu-ort-fp32-b<N>-t<N>" in message and "\n" not in message


def test_more_threads_than_cores_are_refused_when_measuring_but_not_when_reading() -> None:
    target = Target.parse("cpu-ort-fp32-b1-t9999")
    with pytest.raises(InputError, match="9999 threads"):
        target.check_here()


def test_the_fingerprint_says_what_the_machine_and_its_software_are() -> None:
    found = fingerprint(Target.parse("cpu-ort-fp32-b1-t1"))
    fields = {"cpu", "flags", "cores", "architecture", "os", "governor", "runtime", "torch", "numpy", "python"}
    assert found.keys() == fields and all(found.values())
    assert str(found["runtime"]).startswith("onnxruntime ")


def test_the_instruction_flags_count_but_not_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def digest(flags: str) -> str | int:
        monkeypatch.setattr(target_module, "_cpu_info", lambda: {"model name": "X", "flags": flags})
        return fingerprint(Target.parse("cpu-ort-fp32-b1-t1"))["flags"]

    assert digest("sse avx") == digest("avx sse") != digest("avx sse avx512f")


def test_machines_differ_in_what_moves_the_time_only() -> None:
    here: Fingerprint = {**fingerprint(Target.parse("cpu-ort-fp32-b1-t1")), "cpu": "AMD EPYC", "cores": 2}
    updated = here | {"os": "Linux 99", "python": "3.99.0", "governor": "powersave"}
    assert same_machine(here, updated) == [] and machine_slug(here) == machine_slug(updated)
    assert machine_slug(here).startswith("amd-epyc-2c-")
    changes: Fingerprint = {"cpu": "Other", "flags": "0", "cores": 64, "runtime": "onnxruntime 9"}
    for name, value in changes.items():
        assert same_machine(here, here | {name: value}) == [name]
        assert machine_slug(here | {name: value}) != machine_slug(here)


def test_the_shipped_table_is_of_the_machine_that_its_name_says() -> None:
    path = next(Path(str(resources.files("latency_tables"))).glob("*.json"))
    machine = json.loads(path.read_text())["fingerprint"]
    assert path.stem.endswith(f"--{machine_slug(machine)}") and same_machine(machine, dict(machine)) == []


def test_a_gpu_and_its_cuda_are_part_of_the_machine_and_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(target_module, "_driver", lambda: "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    here = fingerprint(Target.parse("cuda-eager-bf16-b64"))
    gpu = {"gpu": "NVIDIA H100 PCIe", "capability": "9.0", "cuda": "13.0", "driver": "580.65.06"}
    assert here == fingerprint(Target.parse("cpu-eager-fp32-b1-t1")) | gpu
    assert machine_slug(here).startswith("nvidia-h100-pcie-") and same_machine(here, here | {"driver": "590.1"}) == []
    for name in ("gpu", "capability", "cuda", "cpu"):
        assert same_machine(here, here | {name: "other"}) == [name]
        assert machine_slug(here) != machine_slug(here | {name: "other"})
    cpu = fingerprint(Target.parse("cpu-eager-fp32-b1-t1"))
    assert same_machine(here, cpu) == ["gpu", "capability", "cuda"]
