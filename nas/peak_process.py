"""The other end of `nas.peak_memory`: a process that has imported a runtime and run nothing, and forks one for each network.

What a network takes is told in a process that runs no other. Its mark is taken once a tiny network has run and the network
itself was opened and closed, so that libraries, and what getting it ready took, are not counted.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TextIO

from nas.runtimes import RUNTIMES, Session
from nas.scratch import scratch_dir
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.blocks import Head, Stem
from search_spaces.errors import InputError

__all__ = ["LIMIT_S", "serve"]

Answer = dict[str, int | bool | str]
"""A line that `serve` writes."""

LIMIT_S = 600  # that a network may take to be opened and run
RUNS = 3  # batches: the first one makes what later ones use again
TINY = Arch(16, 3, (Stem(8), Head(2)))
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def serve() -> None:
    """Read what `nas.peak_memory.request` asks on stdin; write a JSON line for each network on stdout.

    A line is `{"bytes": …, "prepared": whether getting it ready is counted}`, `{"refused": the InputError's line}`, or
    `{"signal": number}` where the process was killed, which SIGALRM does after `LIMIT_S` seconds.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who asked may be killed
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what exporters and runtimes print is no answer
    asked = json.load(sys.stdin)
    target = Target.parse(asked["target"])
    networks = [Arch.from_json(one["arch"]) if "arch" in one else Path(one["path"]) for one in asked["networks"]]
    import_module(RUNTIMES[target.runtime].module)
    for network in networks:
        process = os.fork()
        if process == 0:
            _answer(network, target, answers)
        status = os.waitpid(process, 0)[1]
        if os.WIFSIGNALED(status):
            print(json.dumps({"signal": os.WTERMSIG(status)}), file=answers, flush=True)
        elif status:
            sys.exit(1)  # of its own error, which is on stderr


def _answer(network: Arch | Path, target: Target, answers: TextIO) -> NoReturn:
    """Measure the network in this process, and end it."""
    signal.alarm(LIMIT_S)
    code = 1
    try:
        try:
            answer = measure(network, target)
        except InputError as error:
            answer = {"refused": str(error)}
        gc.collect()  # with the sessions go their folders
        shutil.rmtree(scratch_dir())  # which nothing does at `_exit`
        print(json.dumps(answer), file=answers, flush=True)
        code = 0
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)  # no more than a fork owns


def measure(network: Arch | Path, target: Target) -> Answer:
    """The answer for one network, in a process that runs no other.

    Raises:
        InputError: the target cannot run it, or the file is none that it reads.
    """
    runtime = RUNTIMES[target.runtime]
    runtime.from_arch(TINY, target).time(RUNS)
    before = _high_water()  # where no mark can be set later
    opened = runtime.from_file(network, target) if isinstance(network, Path) else runtime.from_arch(network, target)
    opened.close()
    gc.collect()
    return GROWTH[target.device](opened, before)


def _run(session: Session) -> None:
    session.reopen()
    session.time(RUNS)


def _resident(session: Session, before: int) -> Answer:
    """The peak of the process's resident set, above its mark."""
    reset = _set_mark()
    before = _high_water() if reset else before
    _run(session)
    return {"bytes": max(0, _high_water() - before), "prepared": not reset}


def _allocated(session: Session, before: int) -> Answer:
    """The peak of what torch's allocator gave out on the GPU, above what it had given out before."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    _run(session)
    return {"bytes": torch.cuda.max_memory_allocated() - held, "prepared": False}


GROWTH: dict[str, Callable[[Session, int], Answer]] = {"cpu": _resident, "cuda": _allocated}


def _set_mark() -> bool:
    """Give back what is free, and make the peak what is resident now; False where the system (not Linux) has no such thing."""
    if not CLEAR.exists():
        return False
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps what was freed, and the network would be given that first
        libc.malloc_trim(0)
    with contextlib.suppress(PermissionError):
        CLEAR.write_text("5")
        return True
    return False


def _high_water() -> int:
    """Bytes that were resident at most, since the process began or its mark was set."""
    if STATUS.exists():
        lines = (line.split() for line in STATUS.read_text().splitlines())
        return next(1024 * int(line[1]) for line in lines if line[0] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
