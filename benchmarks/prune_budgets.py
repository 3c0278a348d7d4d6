"""Whether `nas prune` holds its budgets, as measured, and whether the exported files take that long in another process.

    python benchmarks/prune_budgets.py contours_vit --data contours --out results/prune_budgets.json

MODEL is what `nas prune` takes. The dense network is timed, then the command line prunes it to shares of that time, each in a process of
its own, or says with exit code 3 what the cheapest network takes. In the end the files that it wrote are timed again in one interleaved run of a fresh
process. The dense time is the median of its runs, and so is what is held: `of_budget` is the median that pruning measured over the budget, at most 1 (the table's statistic
and the mean beside it); `share_held` the statistics of what is left over the dense network's in the same run; `again_over_measured` the file's times
over those, by the table's statistic, by which networks are compared, and by the median; p10 and p90 are over the runs. An interrupted benchmark goes on with the shares that are done in `--work`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.files import read_json, write_json
from nas.pruning import PARTS
from nas.pruning.files import retimed
from nas.pruning.job import Job, job_of

NAS = "from nas.cli import main; main()"
SEED = 1  # another order of visits than the command's
DONE, OVER_BUDGET = 0, 3
STATISTICS = ("measured_ms", "measured_median_ms", "measured_mean_ms", "measured_p95_ms")
MEDIAN, MEAN = STATISTICS[1:3]


def nas(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own."""
    found = subprocess.run([sys.executable, "-c", NAS, *words], capture_output=True, text=True)
    print(found.stderr, file=sys.stderr, flush=True)
    if found.returncode not in (DONE, OVER_BUDGET):
        raise SystemExit(f"nas {' '.join(words)} ended with exit code {found.returncode}")
    return found


def pruned(share: float, budget_ms: float, given: argparse.Namespace) -> dict[str, Any]:
    """What `nas prune` says of one budget."""
    run = given.work / f"{share:g}"
    options = ("--data", given.data, "--target", given.target, "--seed", str(given.seed))
    calibrated = ("--images", str(given.images), "--parts", ",".join(given.parts), "--budget-ms", str(budget_ms))
    found = nas("prune", given.model, *options, *calibrated, "--out", str(run), "--resume", "--json")
    about: dict[str, Any] = {"share": share, "budget_ms": budget_ms, "exit_code": found.returncode}
    if found.returncode == OVER_BUDGET:
        return {**about, "said": found.stderr.splitlines()[-1]}
    summary = json.loads(found.stdout)
    kept = ("predicted_ms", "speedup_measured", "speedup_macs", "divergence", "before", "after", "onnx", "agrees")
    about |= {name: summary[name] for name in kept}
    after = summary["after"]
    of_dense = {name: after[name] / summary["before"][name] for name in STATISTICS}
    rest = {"statistic_of_budget": after["measured_ms"] / budget_ms, "mean_of_budget": after[MEAN] / budget_ms}
    return {**about, "of_budget": after[MEDIAN] / budget_ms, **rest, "share_held": of_dense}


def dense_ms(job: Job, path: Path) -> float:
    """The median milliseconds of the network as it is; those that an interrupted benchmark measured, as the budgets are shares of them."""
    if not path.exists():
        write_json(path, job.measured([job.named.arch])[0][MEDIAN])
    return float(read_json(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="contours")
    parser.add_argument("--target", default="cpu-ort-fp32-b1-t1")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.25])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what may be made smaller")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("results/prune_budgets"), help="folder of what is done")
    parser.add_argument("--out", type=Path, default=Path("results/prune_budgets.json"))
    given = parser.parse_args()
    job = job_of(
        given.model, given.data, None, given.target, None, given.images, tuple(given.parts), given.seed, foreign=False
    )
    dense = dense_ms(job, given.work / "dense_ms.json")
    found = [pruned(share, share * dense, given) for share in given.shares]
    held = [one for one in found if one["exit_code"] == DONE]
    again = retimed([Path(one["onnx"]) for one in held], job.table, SEED) if held else []
    for one, timing in zip(held, again, strict=True):
        ratios = {"ms": timing.ms / one["after"]["measured_ms"], "median": timing.median / one["after"][MEDIAN]}
        one |= {"again": asdict(timing), "again_over_measured": ratios}
    options = f"{given.model} --data {given.data} --target {given.target} --shares {' '.join(map(str, given.shares))}"
    result = {
        "statistic": job.table.statistic,
        "command": f"python benchmarks/prune_budgets.py {options} --images {given.images} --seed {given.seed}",
        "machine": dict(job.table.content.fingerprint),
        "table": job.table.path.name,
        "dense_ms": dense,
        "budgets": found,
    }
    write_json(given.out, result)
    told = ("share", "exit_code", "of_budget", "again_over_measured", "said")
    print(json.dumps([{name: one[name] for name in told if name in one} for one in found]))


if __name__ == "__main__":
    main()
