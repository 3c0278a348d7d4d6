"""Tables measured while another process starts and stops on the other cores, against one measured on a quiet machine.

    python benchmarks/latency_load.py --trials 3 --out results/latency_load.json

The load multiplies matrices that fill the caches, for some seconds at a time, with pauses as long on average. Every table is validated once
the machine is quiet again, on the same networks. What must hold: a table's error is at most twice the quiet table's, or its
verdict says that it is not good. Exits with 1 if it does not.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from nas.files import write_json
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.target import Target, fingerprint
from nas.validate import validate
from search_spaces import SPACES

SIDE = 700  # of the matrices: three of them are 6 MB
MEAN_S = 6.0  # seconds that the load goes on, and that it pauses, on average
FIGURES = ("within_3pct", "within_5pct", "within_10pct", "mape", "bias", "kendall_tau", "within_band")


def busy(core: int, seed: int) -> None:
    """Work and pause, for ever."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    rng, one = np.random.default_rng(seed), np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    while True:
        end = time.monotonic() + rng.exponential(MEAN_S)
        while time.monotonic() < end:
            one @ one
        time.sleep(rng.exponential(MEAN_S))


@contextmanager
def loaded(cores: list[int], seed: int) -> Iterator[None]:
    """A busy process on each of the cores meanwhile."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=busy, args=(core, seed + core), daemon=True) for core in cores]
    with patch.dict(
        os.environ, OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"
    ):  # its threads would take the other core too
        for process in processes:
            process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def judged(table: LatencyTable, given: argparse.Namespace) -> dict[str, Any]:
    """A table's verdict, and how near it is, told on the quiet machine."""
    found = validate(table, given.nets, given.seed, rounds=given.validation_rounds)
    about = table.content.measurements[-1]
    return {
        "verdict": table.verdict,
        "seconds": about.seconds,
        "heldout_mape": table.content.calibration.heldout_mape,
        **{name: found[name] for name in FIGURES},
        "noise_floor": found["noise_floor"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="hybrid_digits")
    parser.add_argument("--target", default="cpu-ort-fp32-b1-t1")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--nets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--validation-rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    space, target = SPACES[given.space](), Target.parse(given.target)
    others = sorted(os.sched_getaffinity(0))[: -(target.threads or 1)] or sorted(os.sched_getaffinity(0))[:1]
    result: dict[str, Any] = {
        "command": f"python benchmarks/latency_load.py --space {given.space} --target {given.target} --trials {given.trials}"
        f" --minutes {given.minutes:g} --nets {given.nets} --seed {given.seed}",
        "machine": fingerprint(target),
        "busy_cores": len(others),
        "mean_seconds_busy": MEAN_S,
    }
    with tempfile.TemporaryDirectory() as folder:
        quiet = measure_table(space, target, Path(folder) / "quiet", minutes=given.minutes)
        result["quiet"], result["loaded"] = judged(quiet, given), []
        print("quiet", result["quiet"], flush=True)
        for trial in range(given.trials):
            with loaded(others, 100 * trial):
                table = measure_table(space, target, Path(folder) / str(trial), minutes=given.minutes)
            found = judged(table, given)
            found["holds"] = found["mape"] <= 2 * result["quiet"]["mape"] or not found["verdict"]["good"]
            result["loaded"].append(found)
            print("loaded", found, flush=True)
            if given.out is not None:
                write_json(given.out, result)
    sys.exit(not all(found["holds"] for found in result["loaded"]))


if __name__ == "__main__":
    main()
