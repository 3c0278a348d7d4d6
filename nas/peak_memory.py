"""How much memory a network takes on a target at its peak, each told in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from joblib import cpu_count

from nas.cost import params
from nas.peak_process import LIMIT_S
from nas.progress import progress, say
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["MB", "peak_mb", "weights_mb"]

MB = 10**6  # bytes
SERVER = "from nas.peak_process import serve; serve()"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's threshold from the start; where it may move, what was freed before moves a peak by up to a third."""

SHARE = 4  # networks for each process that imports the runtime, which takes as long as measuring as many


def peak_mb(networks: Sequence[Arch | Path], target: Target) -> list[float]:
    """MB (10^6 bytes) that each network takes at most while it is loaded and runs a few batches; equal ones are measured once.

    An Arch gets random weights. On a CPU it is the growth of the process's peak resident set; on a GPU what torch's allocator
    gives out there. Libraries and what getting the network ready takes are left out. Networks are measured side by side on
    all cores, so nothing may be timed meanwhile.

    Raises:
        InputError: the target cannot run a network or be measured here, a file is none that it reads, or a process was
            killed or took too long.
    """
    target.check_here()
    different = tuple(dict.fromkeys(networks))
    workers = max(1, min(cpu_count(), len(different) // SHARE))
    shares = [different[first::workers] for first in range(workers)]
    found: dict[Arch | Path, float] = {}
    with progress("measuring peak memory", len(different)) as bar, ExitStack() as stack:
        asked = [stack.enter_context(_asked(share, target)) for share in shares]
        for share, answers in zip(shares, asked, strict=True):
            for network, answer in zip(share, answers, strict=True):
                found[network] = _megabytes(answer, network)
                bar.update()
    return [found[network] for network in networks]


def request(target: Target, networks: Sequence[Arch | Path]) -> bytes:
    """What `nas.peak_process.serve` reads: a JSON object with the target's name, and an architecture or a path for each network."""
    given = [{"arch": one.to_json()} if isinstance(one, Arch) else {"path": str(one)} for one in networks]
    return json.dumps({"target": target.name, "networks": given}).encode()


def weights_mb(arch: Arch) -> float:
    """MB (10^6 bytes) of the network's weights at 4 bytes each, which is what fp32 holds of them at least."""
    return 4 * params(arch) / MB


@contextmanager
def _asked(networks: Sequence[Arch | Path], target: Target) -> Iterator[Iterator[dict[str, Any]]]:
    """A process that measures the networks one after the other, and its answers; at the end it is gone, and what it forked."""
    path = os.pathsep.join(entry for entry in sys.path if entry)  # the packages that are imported here
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **ALLOCATOR},
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # where it has ended, its answers say so
                process.stdin.write(request(target, networks))
                process.stdin.close()
            yield _answers(process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answers(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """An answer for each network, as `nas.peak_process.serve` has them."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
    code = process.wait()
    if code > 0:
        raise RuntimeError("a process that measures peak memory failed; its error is on stderr")
    if code < 0:
        yield {"signal": -code}


def _megabytes(answer: dict[str, Any], network: Arch | Path) -> float:
    name = f"network {network.id}" if isinstance(network, Arch) else str(network)
    if "refused" in answer:
        raise InputError(answer["refused"])
    if answer.get("signal") == signal.SIGALRM:
        raise InputError(f"{name} took over {LIMIT_S} s to be loaded and run for its peak memory; take a smaller one")
    if "signal" in answer:
        raise InputError(
            f"the process that measures the peak memory of {name} was killed (signal {answer['signal']}), for want of memory it "
            "seems; free some, or run on fewer cores (taskset -c 0)"
        )
    if answer["prepared"]:
        say(f"this system cannot set a process's peak back, so that of {name} counts getting it ready, too")
    return float(answer["bytes"]) / MB
