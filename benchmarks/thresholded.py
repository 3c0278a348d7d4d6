"""A network with thresholds, image by image: mean and p95 of the predicted milliseconds against the measured ones.

    python benchmarks/thresholded.py results/pruned --table latency_tables/TABLE.csv --out results/thresholded.json
    python benchmarks/thresholded.py --arch arch.json --data contours --table latency_tables/TABLE.csv

The first form takes a retrain run whose network has thresholds. The second takes an architecture with pruning locations:
fresh weights, with thresholds calibrated on the very images so that the mean counts are the architecture's. Either is
exported with dynamo, and the exported file is timed on each of the first images of the search-validation split, at the
table's clock.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.thresholds import calibrate
from nas.data import load
from nas.export import export_onnx
from nas.files import write_json
from nas.latency import LatencyTable
from nas.runs import read_arch
from nas.thresholded import compare, in_batches
from nas.train.retrain import fresh_network, load_network
from search_spaces.errors import InputError


def images_of(data: str, size: int, count: int, seed: int) -> Tensor:
    """The first search-validation images (count, C, size, size)."""
    loader = load(data, image_size=size, seed=seed).loader("val", 32, limit=count)
    return torch.cat([images for images, _ in loader])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    table = LatencyTable.load(given.table)
    table.check_machine()
    if given.run is not None:
        network, arch, run = load_network(given.run)
        images = images_of(given.data or run.config["data"], arch.image_size, given.images, given.seed)
    else:
        arch = read_arch(given.arch).keeping(adaptive=True)
        images = images_of(given.data, arch.image_size, given.images, given.seed)
        network = fresh_network(arch, given.seed)
        if arch.locations:
            calibrate(network, arch, in_batches(images))
    if not arch.locations or arch != arch.keeping(adaptive=True):
        raise InputError(f"network {arch.id} has no thresholds; give a run of `nas retrain --thresholds`")
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(network, arch.example(), Path(folder) / "network.onnx")
        found = compare(path, network, arch, images, table, rounds=given.rounds, seed=given.seed)
    return {"arch": json.loads(arch.to_json()), "table": table.path.name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="retrain run whose network has thresholds")
    parser.add_argument("--arch", type=Path, help="architecture file with pruning locations, in place of a run")
    parser.add_argument("--data", help="data set; a run's own by default")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/thresholded.json"))
    given = parser.parse_args()
    if (given.run is None) == (given.arch is None) or (given.arch is not None and given.data is None):
        parser.error("give either a run, or --arch FILE with --data NAME")
    found = measure(given)
    write_json(given.out, found)
    print(json.dumps({name: found[name] for name in ("predicted", "measured", "ratio", "mape", "noise_floor", "kept")}))


if __name__ == "__main__":
    main()
