"""Timing in a process of its own: how it lies in memory moves a network's time, and no two processes are alike in that.

Where hundreds of networks are open, the pieces of memory that each gets are scattered, and it is slower than by itself.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nas.samples import visit_json, visit_of
from nas.target import Target
from nas.thresholded import on_images
from nas.timing import time_opened, time_sessions
from nas.visits import PROTOCOL, Protocol, Visit
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["serve", "time_elsewhere"]

SERVER = "from nas.elsewhere import serve; serve()"


def time_elsewhere(
    archs: Sequence[Arch | Path],
    reference: Arch,
    target: Target,
    *,
    rounds: int,
    seed: int,
    floor: float | None = None,
    protocol: Protocol = PROTOCOL,
    record: Callable[[Visit], None] = lambda visit: None,
    done: Sequence[Visit] = (),
    deadline: float | None = None,
    weights: Mapping[str, float] | None = None,
    images: Path | None = None,
) -> list[Visit]:
    """`nas.timing.time_sessions` in a new process, which ends with this one.

    With `images`, a .npy file of them (N, channels, H, W), the one network, a file, is timed on each of them alone; see
    `nas.thresholded.on_images`.

    Raises:
        InputError: as there, or the process was killed.
    """
    request = {
        "target": target.name,
        "archs": [{"arch": one.to_json()} if isinstance(one, Arch) else {"path": str(one)} for one in archs],
        "reference": reference.to_json(),
        "rounds": rounds,
        "seed": seed,
        "floor": floor,
        "protocol": asdict(protocol),
        "done": [visit_json(visit) for visit in done],
        "seconds": None if deadline is None else deadline - time.monotonic(),
        "weights": weights,
        "images": None if images is None else str(images),
    }
    visits = list(done)
    path = os.pathsep.join(entry for entry in sys.path if entry)  # the packages that are imported here
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if "refused" in answer:
                    raise InputError(answer["refused"])
                if "end" in answer:
                    process.wait()  # it removes its temporary files
                    return visits
                visits.append(visit_of(answer))
                record(visits[-1])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                process.stdin.close()
    if process.returncode < 0:
        raise InputError(
            f"the process that timed networks was killed (signal {-process.returncode}), for want of memory it seems; free some, "
            "then run it again, with --resume where the command has that"
        )
    raise RuntimeError("the process that times networks failed; its error is on stderr")


def serve() -> None:
    """Read a request, a JSON line on stdin; write a line for each visit on stdout, then `{"end": true}`.

    Or `{"refused": the InputError's line}`. Ends at once where stdin does: who asked is gone.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what exporters and runtimes print is no answer
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, daemon=True).start()

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        _time(asked, lambda visit: answer(visit_json(visit)))
    except InputError as error:
        answer({"refused": str(error)})
    else:
        answer({"end": True})


def _time(asked: dict[str, Any], record: Callable[[Visit], None]) -> None:
    """Do what a request asks for."""
    target, seconds = Target.parse(asked["target"]), asked["seconds"]
    networks = [Arch.from_json(one["arch"]) if "arch" in one else Path(one["path"]) for one in asked["archs"]]
    how: dict[str, Any] = {
        "rounds": asked["rounds"],
        "seed": asked["seed"],
        "floor": asked["floor"],
        "protocol": Protocol(**asked["protocol"]),
        "record": record,
        "done": [visit_of(one) for one in asked["done"]],
        "deadline": None if seconds is None else time.monotonic() + seconds,
        "weights": asked["weights"],
    }
    reference = Arch.from_json(asked["reference"])
    if asked["images"] is None:
        time_sessions(networks, reference, target, **how)
        return
    (network,) = networks
    assert isinstance(network, Path)
    time_opened(on_images(network, target, np.load(asked["images"], allow_pickle=False)), reference, target, **how)


def _watch() -> None:
    """Wait, without taking time, for the end of stdin."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the processes that prepare networks, too
