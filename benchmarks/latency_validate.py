"""How good tables are: networks that they have not seen, measured whole against the predictions.

    python benchmarks/latency_validate.py TABLE --nets 40 --seed 7 --rounds 10 --out results/validate.json

TABLE is a name that `nas tables` lists, or a path. What `nas validate --json` prints, with the machine, and the table's own verdict and
seconds beside it.
"""

import argparse
from pathlib import Path

from nas.files import write_json
from nas.latency import LatencyTable
from nas.tables import table_path
from nas.target import fingerprint
from nas.validate import validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--nets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    table = LatencyTable.load(table_path(given.table))
    found = validate(table, given.nets, given.seed, rounds=given.rounds)
    options = f"--nets {given.nets} --seed {given.seed} --rounds {given.rounds}"
    result = {
        "command": f"python benchmarks/latency_validate.py {table.path.name} {options}",
        "machine": fingerprint(table.target),
        "table_seconds": [measured.seconds for measured in table.content.measurements],
        "table_verdict": table.verdict,
        **found,
    }
    print({name: value for name, value in result.items() if name != "networks"})
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
