"""Where a network runs: a target's name, and the machine behind it."""

import hashlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runtimes import RUNTIMES
from search_spaces.errors import InputError

if TYPE_CHECKING:  # imported lazily: naming a target must not wait for torch
    from search_spaces.arch import Arch

__all__ = ["Fingerprint", "Target", "cpu_name", "fingerprint", "machine_slug", "same_machine", "target_form"]

Fingerprint = dict[str, str | int]

IDENTITY = ("cpu", "flags", "cores", "runtime")  # the parts that decide whether a table's milliseconds hold here
GPU_IDENTITY = ("gpu", "capability", "cuda")  # and those of targets on a GPU, which other fingerprints lack

NUMBERS = r"b(?P<batch>[1-9]\d{0,5})(-t(?P<threads>[1-9]\d{0,3}))?"
NAME = re.compile(r"(?P<device>[a-z]+)-(?P<runtime>[a-z]+)-(?P<dtype>[a-z0-9]+)-" + NUMBERS)


@dataclass(frozen=True)
class Target:
    """A device, a runtime, a number type, a batch size and, on CPUs, the number of threads.

    >>> Target.parse("cpu-ort-fp32-b1-t2").threads
    2
    """

    device: str
    runtime: str
    dtype: str
    batch: int
    threads: int | None

    @staticmethod
    def parse(name: str) -> "Target":
        """The target of a name such as `cpu-ort-fp32-b1-t1`.

        Raises:
            InputError: the name has another form, or this version cannot measure such a target.
        """
        match = NAME.fullmatch(name)
        runtime = RUNTIMES.get(match["runtime"]) if match else None
        known = runtime and match and match["dtype"] in runtime.dtypes.get(match["device"], ())
        if not match or not known or (match["threads"] is None) == (match["device"] == "cpu"):
            forms = ", ".join(sorted(_forms()))
            raise InputError(
                f"target {name!r} is not supported; this version measures {forms}, such as cpu-ort-fp32-b1-t1"
            )
        threads = None if match["threads"] is None else int(match["threads"])
        return Target(match["device"], match["runtime"], match["dtype"], int(match["batch"]), threads)

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        threads = "" if self.threads is None else f"-t{self.threads}"
        return f"{self.device}-{self.runtime}-{self.dtype}-b{self.batch}{threads}"

    def check_here(self) -> None:
        """Refuse what this machine cannot measure.

        Raises:
            InputError: the runtime or the device is missing, or the target asks for more threads than there are cores.
        """
        lacking = RUNTIMES[self.runtime].lacks(self.device)
        if lacking is not None:
            raise InputError(f"target {self.name} cannot be measured here: {lacking}")
        cores = os.cpu_count() or 1
        if self.threads is not None and self.threads > cores:
            raise InputError(
                f"target {self.name} needs {self.threads} threads, this machine has {cores} cores; lower -t"
            )

    @property
    def thresholds(self) -> bool:
        """Whether networks with thresholds can be timed on it."""
        return self._against_thresholds() is None

    def check_runs(self, arch: "Arch") -> None:
        """Refuse a network with thresholds where the target cannot run it.

        Raises:
            InputError: it cannot.
        """
        against = self._against_thresholds()
        if against is not None and arch != arch.keeping(adaptive=False):
            raise InputError(f"network {arch.id} has thresholds and {against}")

    def _against_thresholds(self) -> str | None:
        """Why the target cannot time a network with thresholds, and which can."""
        if not RUNTIMES[self.runtime].thresholds:
            return f"shapes that depend on the image, which {self.runtime} does not take; time it on another runtime"
        if self.batch > 1:
            return "takes images one by one; time it on a target of batch 1"
        if self.dtype != "fp32":
            return f"would keep other numbers of patches in {self.dtype}, which rounds their scores; time it on a target of fp32"
        return None


def _forms() -> set[str]:
    """What can be measured, with N for the numbers."""
    return {
        target_form(device, name, dtype)
        for name, runtime in RUNTIMES.items()
        for device, dtypes in runtime.dtypes.items()
        for dtype in dtypes
    }


def target_form(device: str, runtime: str, dtype: str) -> str:
    """A target's name with N for its numbers; on CPUs it names its threads."""
    return f"{device}-{runtime}-{dtype}-b<N>{'-t<N>' if device == 'cpu' else ''}"


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_info() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text(encoding="utf-8").strip() if path.exists() else "unknown"


def _driver() -> str:
    """The version of NVIDIA's driver, such as 580.65.06."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d+(\.\d+)?", path.read_text(encoding="utf-8")) if path.exists() else None
    return found[0] if found else "unknown"


def _gpu() -> Fingerprint:
    """The GPU that torch runs on, torch's CUDA, and the driver."""
    import torch

    capability = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{capability[0]}.{capability[1]}",
        "cuda": str(torch.version.cuda),
        "driver": _driver(),
    }


def fingerprint(target: Target) -> Fingerprint:
    """What this machine is and what runs on it, for the record beside every measurement; on CUDA with its GPU."""
    info = _cpu_info()
    flags = " ".join(sorted((info.get("flags") or info.get("Features") or "").split()))
    package = RUNTIMES[target.runtime].package
    found: Fingerprint = {
        "cpu": cpu_name(),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:12],
        "cores": os.cpu_count() or 1,
        "architecture": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "governor": _governor(),
        "runtime": f"{package} {version(package)}",
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }
    return found | _gpu() if target.device == "cuda" else found


def machine_slug(machine: Mapping[str, str | int]) -> str:
    """A file-name part such as `amd-epyc-2c-1a2b3c`, or `nvidia-h100-pcie-1a2b3c`; equal where `same_machine` finds no difference."""
    parts = [str(machine[name]) for name in IDENTITY] + [str(machine[name]) for name in GPU_IDENTITY if name in machine]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:6]
    named = str(machine.get("gpu", machine["cpu"]))
    device = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")[:40]
    return f"{device}-{digest}" if "gpu" in machine else f"{device}-{machine['cores']}c-{digest}"


def same_machine(first: Mapping[str, str | int], second: Mapping[str, str | int]) -> list[str]:
    """What differs so that one machine's milliseconds are wrong on the other; empty where nothing does."""
    return [name for name in IDENTITY + GPU_IDENTITY if first.get(name) != second.get(name)]
