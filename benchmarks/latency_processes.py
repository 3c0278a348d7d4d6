"""How far a network's time goes from one process to the next: each lays it out in memory in its own way, and keeps to that while it lives.

    python benchmarks/latency_processes.py TABLE [TABLE …] --processes 8 --out results/latency_processes.json

TABLE is a name that `nas tables` lists, or a path. The networks that a table of its space is calibrated on are timed in one process after the other. Of the logarithms of
their times: `specific`, the standard deviation of a network from process to process, beyond what all do; `common`, that of all together; `reference`, that of
the reference network beside them, by which a clock is told; `within`, the split-half noise inside a process. All but the last as shares of a time.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nas.correction import settle
from nas.elsewhere import time_elsewhere
from nas.files import write_json
from nas.latency import LatencyTable
from nas.plan import make_plan
from nas.progress import say
from nas.tables import table_path
from nas.target import fingerprint
from nas.visits import PROTOCOL


def over_processes(table: LatencyTable, processes: int, rounds: int, seed: int) -> dict[str, Any]:
    """The figures of one target."""
    archs = make_plan(table.open_space(), None, seed, table.target.thresholds).apart
    times = []
    for number in range(processes):
        visits = time_elsewhere(archs, table.reference, table.target, rounds=rounds, seed=seed + number)
        times.append(settle(visits, rounds, PROTOCOL, table.statistic))
    logs = np.log([[own.ms[arch.id] for arch in archs] for own in times])  # (processes, networks)
    common = (logs - logs.mean(0)).mean(1)
    specific = logs - logs.mean(0) - common[:, None]
    reference = np.log([own.reference_ms for own in times])
    return {
        "machine": fingerprint(table.target),
        "networks": len(archs),
        "specific": float(np.sqrt(np.square(specific).sum() / (processes - 1) / (len(archs) - 1))),
        "common": float(common.std(ddof=1)),
        "reference": float((reference - common).std(ddof=1)),
        "within": float(np.mean([own.noise_floor for own in times])),
        "disturbed": float(np.mean([own.disturbed for own in times])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8, help="visits that each network gets at least in a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {}
    for path in given.tables:
        table = LatencyTable.load(table_path(path))
        found[table.target.name] = own = over_processes(table, given.processes, given.rounds, given.seed)
        say(f"{table.target.name}: {own}")
    names = " ".join(table_path(path).stem for path in given.tables)
    options = f"--processes {given.processes} --rounds {given.rounds} --seed {given.seed}"
    result = {"command": f"python benchmarks/latency_processes.py {names} {options}", "targets": found}
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
