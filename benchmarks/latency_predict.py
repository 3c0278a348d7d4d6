"""How many networks a second are priced from their codes, against pricing each by itself; and the memory of very many.

    python benchmarks/latency_predict.py --out results/latency_predict.json

Tables hold a made-up time for every row of the space, as only speed and equality are asked here. One core. `rate` is codes per
second of `predict_many`, median over the repeats; `loop_rate` that of `predict(space.decode(code))`, in between; `prepare_s` what
the first call takes besides. `growth_mb` is how much the process's peak memory grew while codes were drawn and priced chunk by chunk
(Linux; from what it had, not from an earlier peak).
"""

import argparse
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.files import write_json
from nas.latency import LatencyTable
from nas.table_file import Calibration, Content, RowTime, Verdict
from nas.target import Target, fingerprint
from search_spaces import SPACES
from search_spaces.space import Space

TARGET = Target("cpu", "ort", "fp32", 1, 1)
CHUNK = 100_000


def made_up(space: Space) -> LatencyTable:
    """A table with a time for every row."""
    rows = {row.key: RowTime(0.01 + 0.003 * i, 0, 0, 0, 0, 1) for i, row in enumerate(space.rows)}
    verdict, reference, protocol = Verdict(0, 0, 0, 0, True, "made up"), dict[str, Any](), dict[str, Any]()
    about = (space.name, (space.classes,), TARGET.name, fingerprint(TARGET), protocol, "median", Calibration())
    return LatencyTable(Content(*about, reference, 1.0, verdict, (), rows), Path(space.name))


def codes_of(space: Space, count: int, seed: int) -> NDArray[np.uint8]:
    limits = [len(choice.values) for choice in space.choices]
    return np.random.default_rng(seed).integers(0, limits, (count, len(limits)), dtype=np.uint8)


def rates(name: str, given: argparse.Namespace) -> dict[str, Any]:
    space = SPACES[name]()
    table, codes, few = made_up(space), codes_of(space, given.codes, 0), codes_of(space, given.few, 1)
    started = time.perf_counter()
    table.predict_many(codes[:1], space)
    found: dict[str, Any] = {"prepare_s": time.perf_counter() - started}
    many, loop, worst = [], [], 0.0
    for _ in range(given.repeats):
        started = time.perf_counter()
        table.predict_many(codes, space)
        many.append(len(codes) / (time.perf_counter() - started))
        started = time.perf_counter()
        expected = np.array([table.predict(space.decode(code)).ms for code in few])
        loop.append(len(few) / (time.perf_counter() - started))
        worst = max(worst, float(np.abs(table.predict_many(few, space) / expected - 1).max()))
    found |= {"rate": np.quantile(many, (0.5, 0.1, 0.9)).tolist(), "loop_rate": float(np.median(loop))}
    return found | {"ratio": float(np.median(many) / np.median(loop)), "largest_relative_difference": worst}


def growth(name: str, count: int) -> dict[str, Any]:
    """The memory that `count` codes take when they are priced chunk by chunk."""
    space = SPACES[name]()
    table = made_up(space)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for seed in range(count // CHUNK):
            yield codes_of(space, CHUNK, seed)

    cheapest = min(float(ms.min()) for ms in table.predict_chunks([codes_of(space, CHUNK, 0)], space))
    Path("/proc/self/clear_refs").write_text("5")  # forgets earlier peaks, which would hide what is asked
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    cheapest = min(cheapest, *(float(ms.min()) for ms in table.predict_chunks(chunks(), space)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - started
    return {
        "space": name,
        "codes": count,
        "seconds": seconds,
        "growth_mb": (after - before) * 1024 / 1e6,
        "least": cheapest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=500, help="priced one by one")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--very-many", type=int, default=100_000_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    command = f"python benchmarks/latency_predict.py --codes {given.codes} --very-many {given.very_many}"
    result: dict[str, Any] = {"command": command, "machine": fingerprint(TARGET), "cores": 1, "spaces": {}}
    for name in ("hybrid_digits", "vit_digits", "hybrid", "vit"):
        result["spaces"][name] = rates(name, given)
        print(name, result["spaces"][name], flush=True)
    result["very_many"] = growth("hybrid_digits", given.very_many)
    print(result["very_many"])
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
