"""Tables adapted from other targets' by whole-network timings, against networks that they have not seen.

    python benchmarks/latency_adapt.py --from latency_tables/TABLE.csv --targets cpu-ort-fp32-b1-t2 --out results/latency_adapt.json
    python benchmarks/latency_adapt.py --from known --targets cpu-openvino-int8-b1-t1 --out results/latency_adapt_known.json

For each target: `nas measure --from`, then `nas validate`. `--from` may be given several times; `known` is all tables of the space
but the target's own. Prints the shares within 3, 5 and 10%, Kendall's tau and the mean error, beside those of the first table
with one scale for all rows, which the same timings give.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import SHIPPED
from nas.files import write_json
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.plan import VALIDATION_STREAM, draw
from nas.sources import find_sources
from nas.target import Target
from nas.timing import ROUNDS
from nas.validate import accuracy, validate
from search_spaces import SPACES

FIGURES = ("within_3pct", "within_5pct", "within_10pct", "mape", "kendall_tau")


def scaled(source: LatencyTable, scale: float, found: dict[str, Any], seed: int) -> dict[str, float]:
    """The validation's figures for the old table's predictions times one scale."""
    archs = draw(source.open_space(), found["nets"], seed, VALIDATION_STREAM)
    assert [arch.id for arch in archs] == [one["arch"] for one in found["networks"]]
    predicted = scale * np.array([source.predict(arch).ms for arch in archs])
    measured = np.array([one["measured_ms"] for one in found["networks"]])
    return accuracy(predicted, measured)


def trial(target: str, given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One target, adapted to and validated."""
    space, wanted = SPACES[given.space](classes=10), Target.parse(target)
    sources = find_sources(given.sources, space, wanted)
    table = measure_table(
        space,
        wanted,
        out,
        rounds=given.rounds,
        sources=sources,
        nets=given.nets,
        seed=given.seed,
    )
    found = validate(table, given.validate, given.seed + 1, rounds=given.rounds)
    (about,) = table.content.measurements
    assert about.adapted_from is not None
    inside = [one["low"] <= one["measured_ms"] <= one["high"] for one in found["networks"]]
    return {
        "target": target,
        "from": [one.path.name for one in sources],
        "adapted": {name: found[name] for name in FIGURES},
        "one_scale": scaled(sources[0], about.adapted_from.one_scale, found, given.seed + 1),
        "within_band": float(np.mean(inside)),
        "seconds": about.seconds,
        "measurement": asdict(about),
        "validation": found,
        "machine": dict(table.content.fingerprint),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="hybrid_digits", choices=SPACES)
    parser.add_argument("--from", dest="sources", type=Path, action="append")
    parser.add_argument("--targets", nargs="+", default=["cpu-ort-fp32-b1-t2"])
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--validate", type=int, default=40, help="networks to validate on")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/latency_adapt.json"))
    given = parser.parse_args()
    given.sources = given.sources or [next(SHIPPED.glob(f"{given.space}--cpu-ort-fp32-b1-t1--*.csv"))]
    options = f"--nets {given.nets} --validate {given.validate} --rounds {given.rounds} --seed {given.seed}"
    command = f"python benchmarks/latency_adapt.py --space {given.space} --targets {' '.join(given.targets)} {options}"
    command += "".join(f" --from {source.name}" for source in given.sources)
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for target in given.targets:
            trials.append(trial(target, given, Path(folder)))
            brief = {name: trials[-1][name] for name in ("target", "adapted", "one_scale", "within_band", "seconds")}
            print(json.dumps(brief), flush=True)
            write_json(given.out, {"command": command, "trials": trials})


if __name__ == "__main__":
    main()
