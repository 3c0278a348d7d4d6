"""The networks that ship, trained from fresh weights by `nas retrain` and put where the package finds them.

    python benchmarks/pretrain.py                        # both; what was interrupted goes on
    python benchmarks/pretrain.py --names digits_vit

To be run in the root of a clone. Each network is one command, the one that `results/pretrained.json` tells. A run that is done
is taken as it is: remove its folder in `--runs` to train anew.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from nas import data as datasets
from nas.cost import macs, params
from nas.evaluate import correct
from nas.files import atomic_write, read_json, write_json
from nas.shipped import NAMES, SHIPPED, shipped_network
from nas.target import Target, fingerprint

DATA = {"contours_vit": "contours", "digits_vit": "digits64"}
RECIPES = {
    "contours_vit": "--epochs 24 --batch-size 32 --lr 2e-3 --ema 0.999 --mixup 0.2",
    "digits_vit": "--epochs 10 --batch-size 32 --lr 2e-3 --ema 0.999",
}
FIRST = 500  # search-validation images on which a test compares the weights with what is told of them


def command(name: str, runs: Path) -> list[str]:
    """The words after `nas`."""
    arch = SHIPPED.relative_to(Path.cwd()) / f"{name}.json"
    return ["retrain", str(arch), "--data", DATA[name], *shlex.split(RECIPES[name]), "--out", str(runs / name)]


def trained(name: str, runs: Path) -> dict[str, Any]:
    """Train the network, or go on, and ship its weights; what is told of it."""
    words = command(name, runs)
    nas = [sys.executable, "-c", "from nas.cli import main; main()"]
    done = subprocess.run([*nas, *words, "--resume", "--json"], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    weights = Path(told["weights"]).read_bytes()
    atomic_write(SHIPPED / f"{name}.safetensors", weights)
    network = shipped_network(name)
    hits = correct(network, datasets.load(DATA[name]), "val")
    return {
        "command": shlex.join(["nas", *words]),
        "data": DATA[name],
        "arch": network.arch.id,
        "params": params(network.arch),
        "macs": macs(network.arch),
        "bytes": len(weights),
        "val_acc": float(hits.mean()),
        "val_first": {"images": FIRST, "correct": int(hits[:FIRST].sum())},
        "test_acc": told["test_acc"],
        "machine": fingerprint(Target.parse("cpu-eager-fp32-b1-t1")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--runs", type=Path, default=Path("results/pretrained"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, default=Path("results/pretrained.json"))
    given = parser.parse_args()
    found = read_json(given.out) if given.out.exists() else {}
    for name in given.names:
        write_json(given.out, found := {**found, name: trained(name, given.runs)})
        print(name, json.dumps(found[name]))


if __name__ == "__main__":
    main()
