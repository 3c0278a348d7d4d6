"""How good tables are: networks that they have not seen, measured whole against the predictions.

    python benchmarks/latency_validate.py TABLE --nets 40 --seed 7 --rounds 10 --out results/validate.json

TABLE is a name that `nas tables` lists, or a path. What `nas validate --json` prints, with the machine, and the table's own verdict and
seconds beside it. `--naive` (ONNX Runtime in fp32) adds the same figures for the sums of the networks' blocks, each timed alone, in the same run.
"""

import argparse
from pathlib import Path

import numpy as np
from naive import naive_ms

from nas.files import write_json
from nas.latency import LatencyTable
from nas.plan import VALIDATION_STREAM, draw
from nas.tables import table_path
from nas.target import fingerprint
from nas.validate import accuracy, validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--nets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    table = LatencyTable.load(table_path(given.table))
    archs = draw(table.open_space(), given.nets, given.seed, VALIDATION_STREAM)
    alone = naive_ms(archs, table.target) if given.naive else None
    found = validate(table, given.nets, given.seed, rounds=given.rounds)
    options = f"--nets {given.nets} --seed {given.seed} --rounds {given.rounds}" + (" --naive" if given.naive else "")
    result = {
        "command": f"python benchmarks/latency_validate.py {table.path.name} {options}",
        "machine": fingerprint(table.target),
        "table_seconds": [measured.seconds for measured in table.content.measurements],
        "table_verdict": table.verdict,
        **found,
    }
    if alone is not None:
        assert [arch.id for arch in archs] == [one["arch"] for one in found["networks"]]
        result["naive"] = accuracy(np.array(alone), np.array([one["measured_ms"] for one in found["networks"]]))
    print({name: value for name, value in result.items() if name != "networks"})
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
