"""Exported winners of quickstarts, timed again in a fresh process, against their budgets.

    python benchmarks/retime.py results/quickstart --out results/retime.json

Prints, for each run folder, every winner's milliseconds over its budget; at most 1.05 is asked for.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.files import read_json, write_json
from nas.latency import LatencyTable
from nas.tables import timed

SEED = 1  # another order of visits than the quickstart's


def retime(run: Path) -> dict[str, Any]:
    """One run's winners at the clock of its table."""
    results = read_json(run / "summary.json")["results"]
    table = LatencyTable.load(next((run / "table").glob("*.csv")))
    timings = timed([run / result["onnx"] for result in results], table, SEED)
    winners = [
        {
            "budget_ms": result["budget_ms"],
            "measured_ms": result["measured_ms"],
            "again": asdict(timing),
            "over_budget": timing.ms / result["budget_ms"],
        }
        for result, timing in zip(results, timings, strict=True)
    ]
    return {"run": run.name, "winners": winners, "machine": dict(table.content.fingerprint)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("results/retime.json"))
    arguments = parser.parse_args()
    found = [retime(run) for run in arguments.runs]
    write_json(arguments.out, found)
    print(json.dumps({one["run"]: [winner["over_budget"] for winner in one["winners"]] for one in found}))


if __name__ == "__main__":
    main()
