"""The searched network against uniform scaling, at the same latency and with the same recipe.

    python benchmarks/uniform_scaling.py --seeds 0 1 2 --runs results/quickstart-seed --out results/uniform_scaling.json

For each seed: a whole quickstart (its run folder is made, or resumed), then the largest network with widths and depths
cut alike, the slowest that measures at most 2% more than the winner of the middle budget; trained from the same supernet
with the same teacher, recipe and epochs, timed in the same rounds as the winner. Accuracies are on the test split; the
interval is a paired bootstrap over source glyphs. `peak_mb` is the process's peak memory so far.
"""

import argparse
import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from arms import interval

from nas.evaluate import correct
from nas.files import write_json
from nas.latency import LatencyTable
from nas.quickstart import Quickstart, Settings
from nas.report import sketch
from nas.runs import read_arch
from nas.tables import measured_ms
from nas.train.retrain import Teacher, load_network
from nas.train.supernet import load_supernet
from search_spaces.arch import Arch
from search_spaces.spaces.hybrid import Hybrid

MIDDLE = 1  # of the three budgets


def scaled(space: Hybrid, share: float) -> Arch:
    """The largest network with every width and depth times `share`, rounded; its partition point at the same share of the depth."""

    def fewer(ratios: tuple[float, ...]) -> tuple[float, ...]:
        return ratios[: max(1, round(share * len(ratios)))] if ratios else ()

    top = space.parts(space.largest)
    widths = [max(2, 2 * round(share * part.width / 2)) for part in top]
    parts = zip(top, widths, strict=True)
    return space.arch(
        [replace(part, width=width, mb4d=fewer(part.mb4d), mb3d=fewer(part.mb3d)) for part, width in parts]
    )


def matched(space: Hybrid, table: LatencyTable, limit_ms: float, seed: int) -> tuple[Arch, float]:
    """The slowest uniformly scaled network whose measured latency is within `limit_ms`, and that latency."""
    shares = np.linspace(0.3, 1.0, 141)
    archs = list(dict.fromkeys(scaled(space, float(share)) for share in shares))
    times = measured_ms(archs, table, seed)
    fitting = [(ms, arch) for ms, arch in zip(times, archs, strict=True) if ms <= limit_ms]
    ms, arch = max(fitting, key=lambda pair: pair[0])
    return arch, ms


def compare(seed: int, out: Path) -> dict[str, Any]:
    """One seed's figures."""
    quick = Quickstart(replace(Settings(), seed=seed), out, resume=True)
    summary = quick()
    result = summary["results"][MIDDLE]
    quick.supernet, _ = load_supernet(out / "supernet")
    table = LatencyTable.load(next((out / "table").glob("*.csv")))
    assert isinstance(quick.space, Hybrid)
    winner = read_arch(out / result["arch"])
    arch, _ = matched(quick.space, table, 1.02 * measured_ms([winner], table, seed)[0], seed)
    teacher = Teacher(load_network(out / "networks" / quick.space.largest.id)[0], quick.space.classes)
    quick.retrained(arch, teacher)
    quick.retrained(quick.space.smallest, teacher)
    smallest, _, _ = load_network(out / "networks" / quick.space.smallest.id)
    files = [out / "networks" / network.id / "network.onnx" for network in (winner, arch)]
    searched_ms, uniform_ms = measured_ms(files, table, seed)
    hits = [
        correct(load_network(path.parent)[0], quick.data.at(network.image_size), "test")
        for path, network in zip(files, (winner, arch), strict=True)
    ]
    difference = hits[0].astype(float) - hits[1].astype(float)
    groups = quick.data.groups("test")
    assert groups is not None
    return {
        "seed": seed,
        "searched": {"measured_ms": searched_ms, "test_acc": float(hits[0].mean()), "network": sketch(winner)},
        "uniform": {"measured_ms": uniform_ms, "test_acc": float(hits[1].mean()), "network": sketch(arch)},
        "difference": float(difference.mean()),
        "interval95": interval(difference, groups),
        "largest": {"measured_ms": summary["largest"]["measured_ms"], "test_acc": summary["largest"]["test_acc"]},
        "smallest": {
            "test_acc": float(correct(smallest, quick.data.at(quick.space.smallest.image_size), "test").mean())
        },
        "seconds": summary["seconds"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="results/quickstart-seed", help="prefix of the run folders")
    parser.add_argument("--out", type=Path, default=Path("results/uniform_scaling.json"))
    arguments = parser.parse_args()
    found = [compare(seed, Path(f"{arguments.runs}{seed}")) for seed in arguments.seeds]
    mean = float(np.mean([one["difference"] for one in found]))
    table = json.loads(next((Path(f"{arguments.runs}{arguments.seeds[0]}") / "table").glob("*.json")).read_text())
    command = f"python benchmarks/uniform_scaling.py --seeds {' '.join(map(str, arguments.seeds))}"
    write_json(
        arguments.out, {"command": command, "mean_difference": mean, "seeds": found, "machine": table["fingerprint"]}
    )
    print(json.dumps({"mean_difference": mean, "differences": [one["difference"] for one in found]}))


if __name__ == "__main__":
    main()
