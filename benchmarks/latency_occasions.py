"""By how much one day differs from another: the mean errors of validations, each of all networks of its day together.

    python benchmarks/latency_occasions.py results/validate_hybrid*.json

A table's networks were timed on one day and the validation's on another; beside the reference, which the clock is told by, they may all be slower together.
Prints each file's `bias`, and their root mean square, which `OCCASION` in `nas/adaptation.py` is.
"""

import argparse
from pathlib import Path

import numpy as np

from nas.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what benchmarks/latency_validate.py --out wrote")
    given = parser.parse_args()
    found = {path.name: float(read_json(path)["bias"]) for path in given.files}
    for name, bias in found.items():
        print(f"{name}: {bias:+.2%}")
    print(f"root mean square of {len(found)}: {np.sqrt(np.square(list(found.values())).mean()):.2%}")


if __name__ == "__main__":
    main()
