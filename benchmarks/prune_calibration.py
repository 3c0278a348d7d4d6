"""How long pruning by calibration alone takes a network of DeiT-S's size, and how much memory.

    python benchmarks/prune_calibration.py --out results/prune_calibration.json

A fresh process prunes the network (random weights, as time does not depend on them) with `compress.prune` to `--share` of its
multiply-accumulates, on random images of 224 pixels. `seconds` leaves out starting Python, `cpu_seconds` sums what its threads worked; `stages` says when each step began; `peak_mb` is
the process's largest resident set (10^6 bytes), `before_mb` that with the network and the images, before pruning. `--profile` prints in which functions the time went.
"""

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.prune import Macs, prune
from nas.files import write_json
from nas.target import Target, fingerprint
from nas.train.retrain import fresh_network
from search_spaces.zoo.vit import HEADS, vit

BATCH = 32
TOLD = 25  # functions of a profile


def peak_mb() -> float:
    """The largest resident set of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def one(given: argparse.Namespace) -> dict[str, Any]:
    """Prune once, in this process."""
    torch.set_num_threads(given.threads)
    network = fresh_network(vit(HEADS[given.size]), given.seed).eval()
    images = torch.cat([network.arch.example(BATCH, seed=i) for i in range(-(-given.images // BATCH))])[: given.images]
    cost, before, stages = Macs(), peak_mb(), []
    started, working = time.perf_counter(), time.process_time()

    def note(what: str) -> None:
        at, worked = time.perf_counter() - started, time.process_time() - working
        stages.append({"stage": what, "at_s": at, "cpu_s": worked, "peak_mb": peak_mb()})

    found = prune(network, cost, given.share * cost.total(network.arch), images.split(BATCH), progress=note)
    seconds, worked = time.perf_counter() - started, time.process_time() - working
    left = found.cost / found.dense_cost
    figures = {"seconds": seconds, "cpu_seconds": worked, "before_mb": before, "peak_mb": peak_mb()}
    return {**figures, "macs_left": left, "frame": found.frame.label, "stages": stages}


def profiled(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run it under Python's profiler, whose table goes to stderr."""
    profile = cProfile.Profile()
    found = profile.runcall(run)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(TOLD)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=HEADS, default="small")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.6, help="of the multiply-accumulates, what may be left")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--here", action="store_true", help="once in this process, as JSON on stdout")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.here or given.profile:
        print(json.dumps(profiled(lambda: one(given)) if given.profile else one(given)))
        return
    options = f"--size {given.size} --images {given.images} --threads {given.threads} --share {given.share}"
    asked = [sys.executable, __file__, "--here", *options.split(), "--seed", str(given.seed)]
    runs = [json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout) for _ in range(given.repeats)]
    seconds, peaks = ([run[name] for run in runs] for name in ("seconds", "peak_mb"))
    result = {
        "command": f"python benchmarks/prune_calibration.py {options} --repeats {given.repeats}",
        "machine": fingerprint(
            Target("cpu", "ort", "fp32", 1, given.threads)
        ),  # for the machine alone: torch runs here
        "seconds": {"median": float(np.median(seconds)), "all": seconds},
        "peak_mb": {"median": float(np.median(peaks)), "all": peaks},
        "runs": runs,
    }
    print({name: result[name] for name in ("command", "seconds", "peak_mb")})
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
