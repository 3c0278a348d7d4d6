"""What each dimension of a searched space moves, alone, the others fixed; and how often what a search finds uses it.

    python benchmarks/dimensions.py results/quickstart --out results/dimensions.json

From the run folder of a quickstart, or of several. For each of some networks of every cost, each dimension is set to each of
its values, all else that keeps its meaning staying. Told of a dimension: by how much milliseconds, MACs and accuracy (the
supernet's weights, search-validation) lie between its cheapest and its dearest value, as shares of the dearest, in the median
over the networks; the milliseconds of the table, as a multiple of its noise floor too, and measured on the dearest of the
networks beside what the table says there; and the share of winners, and of the searches' fronts, that use it.
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
from search_spaces.blocks import MB3D, MB4D, Embed, Stem

DIMENSIONS = {  # name -> the choices that are set together, and what a network that uses it shows
    "resolution": (r"resolution", lambda arch, top: arch.image_size < top.image_size),
    "width": (r"width\d", lambda arch, top: widths(arch) != widths(top)),
    "depth": (r"depth\d", lambda arch, top: len(of(arch, MB4D, MB3D)) < len(of(top, MB4D, MB3D))),
    "partition": (r"mb3d", lambda arch, top: bool(of(arch, MB3D))),
    "mixer": (r"mixer\d", lambda arch, top: any(spec.mixer == "depthwise" for spec in of(arch, MB4D))),
    "FFN ratio": (r"ratio.*", lambda arch, top: len({spec.ratio for spec in of(arch, MB4D, MB3D)}) > 1),
    "residual form": (r"residual\d", lambda arch, top: any(spec.residual == "coefficients" for spec in of(arch, MB3D))),
    "loops": (r"loops\d", lambda arch, top: any(spec.loops > 1 for spec in of(arch, MB3D))),
    "projection": (r"nll\d", lambda arch, top: any(spec.nll for spec in of(arch, MB3D))),
    "external loop": (r"recursion\d", lambda arch, top: any(spec.passes > 1 for spec in arch.blocks)),
    "groups": (r"groups.*", lambda arch, top: any(spec.groups for spec in of(arch, MB3D))),
    "order": (r"order.*", lambda arch, top: any(set(spec.orders) - {"contiguous"} for spec in of(arch, MB3D))),
    "inverse": (r"inverse\d", lambda arch, top: any(not spec.inverse for spec in of(arch, MB3D))),
    "kept patches": (r"keep.*", lambda arch, top: bool(arch.locations)),
}
FOLLOWS = {  # positions that mean nothing any more where another choice takes away what they are about
    "depth": r"ratio.*|mixer\d|mb3d|residual\d|loops\d|nll\d|recursion\d|groups.*|order.*|inverse\d|keep.*",
    "partition": r"ratio.*|mixer\d|residual\d|loops\d|nll\d|recursion\d|groups.*|order.*|inverse\d|keep.*",
    "loops": r"groups\d\.1|order\d\.1|inverse\d|recursion\d",
    "groups": r"order.*|inverse\d",
    "order": r"inverse\d",
}


def of(arch: Arch, *kinds: type) -> list[Any]:
    """The blocks of some kinds."""
    return [spec for spec in arch.blocks if isinstance(spec, kinds)]


def widths(arch: Arch) -> list[int]:
    """The width of each stage."""
    return [spec.width for spec in of(arch, Stem, Embed)]


def positions(space: Space, pattern: str) -> list[int]:
    """Which choices belong to a dimension."""
    return [i for i, choice in enumerate(space.choices) if re.fullmatch(pattern, choice.name)]


def alternatives(space: Space, arch: Arch, name: str) -> list[Arch]:
    """`arch` with all choices of a dimension at each of their values; those that would change what stays meaningful are left out."""
    code, places = space.encode(arch), positions(space, DIMENSIONS[name][0])
    others = np.setdiff1d(np.arange(len(code)), places)
    found: dict[Arch, None] = {}
    for value in range(max(len(space.choices[i].values) for i in places)):
        tried = code.copy()
        for i in places:
            tried[i] = min(value, len(space.choices[i].values) - 1)
        fixed = space.repair(tried)
        changed = [space.choices[i].name for i in others if fixed[i] != code[i]]
        if all(re.fullmatch(FOLLOWS.get(name, ""), other) for other in changed):
            found[space.decode(fixed)] = None
    return list(found)


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
    space: Space, name: str, bases: Sequence[Arch], table: LatencyTable, score: Scorer, seed: int
) -> dict[str, Any]:
    """One dimension's figures, without its use by searches."""
    families = [family for family in (alternatives(space, base, name) for base in bases) if len(family) > 1]
    ms, costs, accuracies, direction = [], [], [], []
    for archs in families:
        prices, scores = [table.predict(arch).ms for arch in archs], [score(arch) for arch in archs]
        ms.append(span(prices, True))
        costs.append(span([float(macs(arch)) for arch in archs], True))
        accuracies.append(span(scores, False))
        direction.append(scores[int(np.argmax(prices))] - scores[int(np.argmin(prices))])
    if not families:
        return {"networks": 0}
    dearest = max(families, key=lambda archs: table.predict(archs[0]).ms)
    timed = measured_ms(dearest, table, seed)
    return {
        "networks": len(families),
        "ms_moved": float(np.median(ms)),
        "times_noise_floor": float(np.median(ms)) / table.verdict["noise_floor"],
        "ms_moved_measured": span(timed, True),
        "ms_moved_predicted_there": span([table.predict(arch).ms for arch in dearest], True),
        "macs_moved": float(np.median(costs)),
        "accuracy_moved": float(np.median(accuracies)),
        "dearest_less_cheapest_accuracy": float(np.median(direction)),
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
    bases = [space.largest, *(space.mutate(space.spread(rng), rng, 0.3) for _ in range(options.networks - 1))]
    summaries = {path: Run.open(path).summary or {} for path in options.runs}
    winners = [read_arch(path / one["arch"]) for path, done in summaries.items() for one in done["results"]]
    fronts = [arch for path in options.runs for arch in front(path, space)]
    found = {}
    for name, (_, used) in DIMENSIONS.items():
        figures = dimension(space, name, bases, table, score, options.seed)
        shares = {
            "winners_use": float(np.mean([used(arch, space.largest) for arch in winners])),
            "fronts_use": float(np.mean([used(arch, space.largest) for arch in fronts])),
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
