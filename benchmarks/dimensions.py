"""What each dimension of a searched space moves, alone, the others fixed; and how often what a search finds uses it.

    python benchmarks/dimensions.py results/quickstart --out results/dimensions.json

From the run folder of a quickstart, or of several. For each of some networks of every cost, each dimension is set to each of
its values, all else staying. Told of a dimension: by how much milliseconds (of the table, and beside them measured, where the
network is the largest of the space), MACs and accuracy (the supernet's weights, search-validation) lie between its cheapest
and its dearest value, in the median over the networks; the milliseconds also as a multiple of the table's noise floor; and the
share of winners, and of the searches' fronts, that take another value than the largest network's.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas import data as datasets
from nas.cost import macs
from nas.files import write_json
from nas.latency import LatencyTable
from nas.runs import Run, read_arch
from nas.search.score import Scorer
from nas.tables import measured_ms
from nas.train.supernet import load_supernet
from search_spaces import Space
from search_spaces.arch import Arch

DIMENSIONS = {  # name -> the choices that are set together
    "resolution": r"resolution",
    "width": r"width\d",
    "depth": r"depth\d",
    "partition": r"mb3d",
    "mixer": r"mixer\d",
    "FFN ratio": r"ratio.*",
    "residual form": r"residual\d",
    "loops": r"loops\d",
    "projection": r"nll\d",
    "external loop": r"recursion\d",
    "groups": r"groups.*",
    "order": r"order.*",
    "inverse": r"inverse\d",
    "kept patches": r"keep.*",
}


def positions(space: Space, pattern: str) -> list[int]:
    """Which choices belong to a dimension."""
    return [i for i, choice in enumerate(space.choices) if re.fullmatch(pattern, choice.name)]


def alternatives(space: Space, arch: Arch, places: Sequence[int]) -> list[Arch]:
    """`arch` with all choices of a dimension at each of their values; those that repair would change elsewhere are left out."""
    code = space.encode(arch)
    others = np.setdiff1d(np.arange(len(code)), places)
    found: dict[Arch, None] = {}
    for value in range(max(len(space.choices[i].values) for i in places)):
        tried = code.copy()
        for i in places:
            tried[i] = min(value, len(space.choices[i].values) - 1)
        fixed = space.repair(tried)
        changed = {space.choices[i].name for i in others if fixed[i] != code[i]}
        # A network with fewer blocks has fewer ratios, one with one loop no second one's groups: those positions go with it.
        if not any(re.match(r"width|resolution|mb3d|loops|nll|residual|mixer", name) for name in changed):
            found[space.decode(fixed)] = None
    return list(found)


def uses(space: Space, arch: Arch, places: Sequence[int]) -> bool:
    """Whether a network takes another value of the dimension than the largest where it has a choice."""
    code, top = space.encode(arch), space.encode(space.largest)
    return bool((code[places] != top[places]).any())


def front(run: Path, space: Space) -> list[Arch]:
    """The networks of a search that none of its others beats in both accuracy and milliseconds."""
    records = [record for record in Run.open(run / "search").records() if record["event"] == "evaluated"]
    ranked = sorted(records, key=lambda record: (record["ms"], -record["accuracy"]))
    best, found = -1.0, []
    for record in ranked:
        if record["accuracy"] > best:
            best = record["accuracy"]
            found.append(space.decode(np.array(record["code"])))
    return found


def span(values: Sequence[float], relative: bool) -> float:
    """Largest less smallest, as a share of the largest if `relative`."""
    return (max(values) - min(values)) / (max(values) if relative else 1)


def dimension(
    space: Space, places: list[int], bases: Sequence[Arch], table: LatencyTable, score: Scorer, seed: int
) -> dict[str, Any]:
    """One dimension's figures, without its use by searches."""
    ms, costs, accuracies, direction = [], [], [], []
    for base in bases:
        archs = alternatives(space, base, places)
        if len(archs) > 1:
            prices, scores = [table.predict(arch).ms for arch in archs], [score(arch) for arch in archs]
            ms.append(span(prices, True))
            costs.append(span([float(macs(arch)) for arch in archs], True))
            accuracies.append(span(scores, False))
            direction.append(scores[int(np.argmax(prices))] - scores[int(np.argmin(prices))])
    family = alternatives(space, bases[0], places)
    timed = measured_ms(family, table, seed) if len(family) > 1 else []
    floor = table.verdict["noise_floor"]
    return {
        "networks": len(ms),
        "ms_moved": float(np.median(ms)) if ms else None,
        "times_noise_floor": float(np.median(ms)) / floor if ms else None,
        "ms_moved_measured_on_largest": span(timed, True) if timed else None,
        "macs_moved": float(np.median(costs)) if costs else None,
        "accuracy_moved": float(np.median(accuracies)) if accuracies else None,
        "dearest_less_cheapest_accuracy": float(np.median(direction)) if direction else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--networks", type=int, default=8, help="networks from which each dimension is moved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/dimensions.json"))
    options = parser.parse_args()
    first = options.runs[0]
    supernet, run = load_supernet(first / "supernet")
    space, table = supernet.space, LatencyTable.load(next((first / "table").glob("*.csv")))
    score = Scorer(supernet, datasets.load(run.config["data"]), options.seed)
    rng = np.random.default_rng(options.seed)
    bases = [space.largest, *(space.spread(rng) for _ in range(options.networks - 1))]
    winners = [read_arch(path / one["arch"]) for path in options.runs for one in Run.open(path).summary["results"]]
    fronts = [arch for path in options.runs for arch in front(path, space)]
    found = {}
    for name, pattern in DIMENSIONS.items():
        places = positions(space, pattern)
        figures = dimension(space, places, bases, table, score, options.seed)
        shares = {
            "winners_use": float(np.mean([uses(space, arch, places) for arch in winners])),
            "fronts_use": float(np.mean([uses(space, arch, places) for arch in fronts])),
        }
        found[name] = {**figures, **shares}
        print(name, json.dumps(found[name]))
    command = f"python benchmarks/dimensions.py {' '.join(path.name for path in options.runs)}"
    about = {"command": f"{command} --networks {options.networks}", "winners": len(winners), "fronts": len(fronts)}
    machine = dict(table.content.fingerprint)
    noise = {"noise_floor": table.verdict["noise_floor"]}
    write_json(options.out, {**about, **noise, "dimensions": found, "machine": machine})


if __name__ == "__main__":
    main()
