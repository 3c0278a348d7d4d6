"""Learned per-location thresholds against equal keep ratios at the same milliseconds (AS-ViT, arXiv 2209.13802, table 4).

    python benchmarks/sparsity.py --seeds 0 1 2 --out results/sparsity.json

A hybrid of six 3D blocks on 64 tokens with three pruning locations. For each seed a dense network is trained; from it, with it
as teacher and by the same epochs: "equal": at every location .7 of the patches that reach it stay, the same number for each
image; "learned": thresholds, on a budget of the milliseconds that "equal" takes by the latency table of this machine, which is
measured first; "learned_macs": the same on a budget of the MACs of "equal", as a network with thresholds takes more milliseconds
than one that keeps as many patches of every image. Accuracies are on the test split, intervals a paired bootstrap over its images;
milliseconds are the table's for the patches that the test images keep.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from arms import interval, parser

from compress import counts_of
from nas import data as datasets
from nas.data import Data
from nas.evaluate import correct
from nas.files import write_json
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.target import Target
from nas.train.loop import Recipe
from nas.train.retrain import Teacher, load_network, retrain
from nas.train.thresholds import budget_of, learn_thresholds
from search_spaces.blocks import MB3D
from search_spaces.spaces.hybrid import Hybrid, Part, Stage

SHARES = (0.7, 0.49, 0.343)  # of the 64 patches, at the three locations
LEARNED = ("learned", "learned_macs")
LR = 5e-4  # of what starts from the dense network


def space() -> Hybrid:
    """What the latency table is measured for: these networks, with any of several numbers of patches left."""
    keeps = (1, 0.9, *SHARES, 0.25, 0.12)
    stages = (
        Stage((24,), (1,)),
        Stage((48,), (6,), block=MB3D(3, 16, 16), locations=(1, 2, 3), keeps=keeps),
    )
    return Hybrid("sparsity", 64, stages, (6,), (3,), 0.1, classes=16)


def compare(seed: int, epochs: int, data: Data, table: LatencyTable, runs: Path) -> dict[str, Any]:
    """One seed's figures."""
    networks = space()
    dense = networks.largest
    keeps = [networks.kept(1, 64, share) for share in SHARES]
    equal = networks.arch([Part(24, (3,)), Part(48, (), (3,) * 6, keeps=(0, 0, *keeps, 0))])
    retrain(dense, data, Recipe(epochs, 32, 2e-3, seed=seed), runs / f"dense-{seed}", resume=True)
    trained, _, _ = load_network(runs / f"dense-{seed}")
    values = list(trained.state_dict().values())
    start = dict(zip(equal.build().state_dict(), values, strict=True))
    recipe = Recipe(epochs // 2, 32, LR, seed=seed)
    # A third of the whole and a temperature of 1 are what `learn_thresholds` has beside its budget.
    retrain(
        equal, data, recipe, runs / f"equal-{seed}", start=start, teacher=Teacher(trained, 16, 1 / 3, 1.0), resume=True
    )
    adaptive = equal.keeping(adaptive=True)
    budget = budget_of(adaptive, table, table.predict(equal).ms)  # applying thresholds costs more, so they keep fewer
    found = learn_thresholds(adaptive, data, recipe, runs / f"learned-{seed}", budget, start=start, resume=True)
    learn_thresholds(adaptive, data, recipe, runs / f"learned_macs-{seed}", budget_of(equal), start=start, resume=True)
    hits = {
        name: correct(load_network(runs / f"{name}-{seed}")[0], data, "test") for name in ("dense", "equal", *LEARNED)
    }
    counts = {
        name: counts_of(load_network(runs / f"{name}-{seed}")[0], list(data.loader("test", 250))) for name in LEARNED
    }
    ms = {name: table.price_counts(adaptive, own.numpy()) for name, own in counts.items()}
    differences = {name: hits[name].astype(float) - hits["equal"].astype(float) for name in LEARNED}
    return {
        "seed": seed,
        "test_acc": {name: float(own.mean()) for name, own in hits.items()},
        "less_equal": {name: float(own.mean()) for name, own in differences.items()},
        "interval95": {name: interval(own) for name, own in differences.items()},
        "ms": {
            "dense": table.predict(dense).ms,
            "equal": table.predict(equal).ms,
            **{f"{name}_mean": float(own.mean()) for name, own in ms.items()},
            **{f"{name}_p95": float(np.quantile(own, 0.95)) for name, own in ms.items()},
        },
        "kept": {
            "equal": keeps,
            **{f"{name}_mean": own.double().mean(0).tolist() for name, own in counts.items()},
            **{f"{name}_std": own.double().std(0).tolist() for name, own in counts.items()},
        },
        "training": {name: value for name, value in found.items() if name != "weights"},
    }


def main() -> None:
    options = parser(__doc__, "results/sparsity.json", epochs=8).parse_args()
    data = datasets.load(options.data)
    table = measure_table(space(), Target.parse("cpu-ort-fp32-b1-t1"), options.runs / "table", resume=True)
    seeds = [compare(seed, options.epochs, data, table, options.runs) for seed in options.seeds]
    found = {
        "command": f"python benchmarks/sparsity.py --seeds {' '.join(map(str, options.seeds))} --epochs {options.epochs}",
        "mean_less_equal": {name: float(np.mean([one["less_equal"][name] for one in seeds])) for name in LEARNED},
        "seeds": seeds,
        "table": {"verdict": table.verdict, "id": table.id},
        "machine": dict(table.content.fingerprint),
    }
    write_json(options.out, found)
    print(json.dumps([{name: one[name] for name in ("test_acc", "ms", "interval95")} for one in seeds]))


if __name__ == "__main__":
    main()
