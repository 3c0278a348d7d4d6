"""Tables adapted from another target's by whole-network timings, against networks that they have not seen.

    python benchmarks/latency_adapt.py --from latency_tables/TABLE.csv --targets cpu-ort-fp32-b1-t2 --out results/latency_adapt.json

For each target: `nas measure --from`, then `nas validate`. Prints the shares within 3, 5 and 10%, Kendall's tau and the mean
error, beside those of the old table with one scale for all rows, which the same timings give.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import SHIPPED
from nas.adaptation import NETS
from nas.files import write_json
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.plan import VALIDATION_STREAM, draw
from nas.target import Target
from nas.timing import ROUNDS
from nas.validate import accuracy, validate

FIGURES = ("within_3pct", "within_5pct", "within_10pct", "mape", "kendall_tau")


def scaled(source: LatencyTable, scale: float, found: dict[str, Any], seed: int) -> dict[str, float]:
    """The validation's figures for the old table's predictions times one scale."""
    archs = draw(source.open_space(), found["nets"], seed, VALIDATION_STREAM)
    assert [arch.id for arch in archs] == [one["arch"] for one in found["networks"]]
    predicted = scale * np.array([source.predict(arch).ms for arch in archs])
    measured = np.array([one["measured_ms"] for one in found["networks"]])
    return accuracy(predicted, measured)


def trial(source: LatencyTable, target: str, given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One target, adapted to and validated."""
    table = measure_table(
        source.open_space(),
        Target.parse(target),
        out,
        rounds=given.rounds,
        source=source,
        nets=given.nets,
        seed=given.seed,
    )
    found = validate(table, given.validate, given.seed + 1, rounds=given.rounds)
    (about,) = table.content.measurements
    inside = [one["low"] <= one["measured_ms"] <= one["high"] for one in found["networks"]]
    return {
        "target": target,
        "adapted": {name: found[name] for name in FIGURES},
        "one_scale": scaled(source, about.adapted_from.one_scale, found, given.seed + 1),
        "within_band": float(np.mean(inside)),
        "seconds": about.seconds,
        "measurement": asdict(about),
        "validation": found,
        "machine": dict(table.content.fingerprint),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, default=next(SHIPPED.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.csv"))
    )
    parser.add_argument("--targets", nargs="+", default=["cpu-ort-fp32-b1-t2"])
    parser.add_argument("--nets", type=int, default=NETS)
    parser.add_argument("--validate", type=int, default=40, help="networks to validate on")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/latency_adapt.json"))
    given = parser.parse_args()
    source, trials = LatencyTable.load(given.source), []
    options = f"--nets {given.nets} --validate {given.validate} --rounds {given.rounds} --seed {given.seed}"
    command = f"python benchmarks/latency_adapt.py --targets {' '.join(given.targets)} {options}"
    command += f" --from latency_tables/{source.path.name}.csv"
    with tempfile.TemporaryDirectory() as folder:
        for target in given.targets:
            trials.append(trial(source, target, given, Path(folder)))
            brief = {name: trials[-1][name] for name in ("target", "adapted", "one_scale", "within_band", "seconds")}
            print(json.dumps(brief), flush=True)
            about = {"command": command, "from": source.path.name, "sha256": source.content.sha256}
            write_json(given.out, {**about, "trials": trials})


if __name__ == "__main__":
    main()
