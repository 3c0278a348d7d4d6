"""What a table adapted by fewer networks would have been, told from the samples of one that was adapted by many.

    python benchmarks/latency_adapt_fewer.py TABLE.csv VALIDATION.json [TABLE.csv VALIDATION.json …] --nets 20 40 --out results/latency_adapt_hybrid.json

TABLE is what `nas measure --from` wrote, with its `.samples.jsonl` beside it, and VALIDATION what `benchmarks/latency_validate.py --out` wrote of it. Networks are
chosen one after the other, so `--nets 20` would have timed the first twenty of those in the samples: their times alone are adapted to, and the
networks of the validation predicted. Only what twenty networks alone would have been timed beside differs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.adaptation import adapt, choose_nets, usual_nets
from nas.correction import settle
from nas.files import read_json, write_json
from nas.latency import LatencyTable
from nas.plan import VALIDATION_STREAM, draw
from nas.samples import visit_of
from nas.sources import find_sources
from nas.validate import accuracy
from nas.visits import PROTOCOL, Visit


def visits_in(path: Path) -> list[Visit]:
    """The visits of a samples file."""
    lines = map(json.loads, path.read_text().splitlines())
    return [visit_of(line) for line in lines if "s" in line]


def fewer(path: Path, validation: Path, counts: Sequence[int], seed: int) -> dict[str, Any]:
    """The figures of one table, by number of networks."""
    table, found = LatencyTable.load(path), read_json(validation)
    (about,) = table.content.measurements
    origin = about.adapted_from
    assert origin is not None, f"{path} was measured, not adapted"
    space = table.open_space()
    sources = find_sources([Path(origin.table)], space, table.target)
    archs = choose_nets(sources, space, len(origin.nets), about.seed)
    assert tuple(arch.id for arch in archs) == origin.nets, "networks follow from the seed"
    times = settle(visits_in(path.with_suffix(".samples.jsonl")), about.rounds, PROTOCOL, table.statistic)
    unseen = draw(space, len(found["networks"]), seed, VALIDATION_STREAM)
    assert [arch.id for arch in unseen] == [one["arch"] for one in found["networks"]], "--seed is the validation's"
    measured = np.array([one["measured_ms"] for one in found["networks"]])
    out: dict[str, Any] = {}
    for count in counts:
        ms = np.array([times.ms[arch.id] for arch in archs[:count]])
        made = adapt(sources, archs[:count], ms, times.noise_floor, usual_nets(space, about.seed))
        rows = np.array([sum(made.rows[row.key].ms for row in arch.rows) for arch in unseen])
        predicted = made.calibration.offset + rows
        band, ratio = made.calibration, measured / predicted
        out[str(count)] = {
            **accuracy(predicted, measured),
            "within_band": float(((band.low <= ratio) & (ratio <= band.high)).mean()),
            "heldout_mape": band.heldout_mape,
        }
        print(table.target.name, count, out[str(count)], flush=True)
    return {"table": table.path.name, "from": [source.path.name for source in sources], "nets": out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="TABLE.csv VALIDATION.json, of each table in turn")
    parser.add_argument("--nets", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--seed", type=int, default=7, help="of the validations")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tables, validations = given.files[::2], given.files[1::2]
    pairs = list(zip(tables, validations, strict=True))
    found = {
        "command": "python benchmarks/latency_adapt_fewer.py "
        + " ".join(f"{path.name} {validation.name}" for path, validation in pairs)
        + f" --nets {' '.join(map(str, given.nets))} --seed {given.seed}",
        "targets": [fewer(path, validation, given.nets, given.seed) for path, validation in pairs],
    }
    if given.out is not None:
        write_json(given.out, found)


if __name__ == "__main__":
    main()
