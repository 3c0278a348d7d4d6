"""Accuracy at measured milliseconds: `nas prune` against other ways to make the same network as fast.

    python benchmarks/prune_accuracy.py contours_vit --data contours --out results/prune_accuracy.json

For each share of the dense network's milliseconds, each way (`prune_ways.py`) gives the slowest of its networks that is measured within it;
ours is pruned until it is. All of them and the dense network are timed in one interleaved run; what is over its budget gives way to the next
smaller one, and all are timed again. Then each is trained for the same number of steps, as `nas prune --train-epochs` does: same images in the same
order, same teacher (the dense network), same recipe. `random-tokens` keeps as many patches as `tokens` at the same places, but random ones. `ours untrained` is calibration alone.

Accuracies are on the test split, which nothing else reads. A difference is the mean over seeds, its interval a paired bootstrap over images of that
mean. What is done lies in `--work`: the networks chosen, weights, and for each image whether it was right (`.npz`); an interrupted benchmark goes on
from there. `--epochs 1 --limit 500 --rounds 2 --seeds 0` tries it out.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from arms import Hits, interval, kept
from prune_choice import DENSE, OURS, UNTRAINED, Pick, chosen, started
from prune_ways import WAYS, Source, at_random
from torch_pruned import library

from nas.evaluate import correct
from nas.files import write_json
from nas.progress import say
from nas.pruning import PARTS, Healing
from nas.pruning.job import job_of
from nas.runs import Run
from nas.timing import ROUNDS
from nas.train.loop import Recipe, fit
from nas.train.retrain import Teacher, asked, supervised
from search_spaces import zoo
from search_spaces.arch import Network


def trained(pick: Pick, recipe: Recipe, teacher: Teacher, source: Source, given: argparse.Namespace) -> dict[str, Any]:
    """Train one network from where it starts, or go on; the seconds that took, and whether each test image is right."""
    folder, data = given.work / "trained" / pick.name, source.job.data
    network = zoo.from_checkpoint(started(given, pick))
    config = asked(network.arch, data, recipe, dict(network.state_dict()), teacher)
    run = Run.start(folder, "prune_accuracy", config, resume=True)
    network = at_random(network, pick.seed) if pick.way == "random-tokens" else network
    with run.locked():
        if run.summary is None:
            began = time.perf_counter()
            objective = supervised(recipe, teacher, network.arch)
            fit(network, objective, data, recipe, folder / "checkpoint.pt", f"train {pick.name}")
            run.save_network(network.arch, dict(network.state_dict()))
            run.finish({"seconds": time.perf_counter() - began})
            (folder / "checkpoint.pt").unlink()
        network.load_state_dict(run.weights())
        return {**(run.summary or {}), "hits": right(folder / "hits.npz", network, source, given)}


def right(path: Path, network: Network, source: Source, given: argparse.Namespace) -> Hits:
    """(images,) whether each test image is right; kept in a file."""
    data = source.job.data.at(network.arch.image_size)
    return kept(path, lambda: correct(network, data, "test", given.limit))


def every(
    source: Source, picks: dict[Pick, dict[str, Any]], given: argparse.Namespace
) -> Iterator[tuple[Pick, dict[str, Any]]]:
    """What became of each pick, seed after seed; of ours also before it was trained."""
    dense = next(pick for pick in picks if pick.way == DENSE)
    yield dense, {"hits": right(given.work / "dense.npz", source.job.network, source, given)}
    ours = sorted((pick for pick in picks if pick.way != DENSE), key=lambda pick: pick.seed)
    healing = Healing(given.epochs, given.batch_size)
    teachers = {seed: replace(source.job.teacher(), remembered={}) for seed in given.seeds}
    for number, pick in enumerate(ours, 1):
        if pick.way == OURS:
            network = zoo.from_checkpoint(started(given, pick))
            hits = right(given.work / "untrained" / f"{pick.name}.npz", network, source, given)
            yield replace(pick, way=UNTRAINED), {"hits": hits}
        recipe = healing.recipe(source.arch, pick.seed)
        found = trained(pick, recipe, teachers[pick.seed], source, given)
        say(f"{number} of {len(ours)}: {pick.name} {found['hits'].mean():.4f}, {found['seconds']:.0f} s of training")
        yield pick, found


def compared(hits: dict[Pick, Hits], given: argparse.Namespace) -> list[dict[str, Any]]:
    """For each share the mean accuracies, what ours loses of the dense network's, and what it is ahead of each other way."""
    found = []
    (dense,) = (own for pick, own in hits.items() if pick.way == DENSE)
    for share in given.shares:
        of = {
            way: np.stack([hits[Pick(way, share, seed)] for seed in given.seeds]).mean(0)
            for way in dict.fromkeys(pick.way for pick in hits if pick.share == share and pick.way != DENSE)
        }
        rivals = [way for way in of if way not in (OURS, UNTRAINED)]
        pairs = {f"dense less {way}": dense - of[way] for way in (OURS, UNTRAINED) if way in of}
        pairs |= {f"{OURS} less {way}": of[OURS] - of[way] for way in rivals if OURS in of}
        found.append(
            {
                "share": share,
                "test_acc": {DENSE: float(dense.mean()), **{way: float(own.mean()) for way, own in of.items()}},
                "differences": {
                    name: {"mean": float(one.mean()), "interval95": interval(one)} for name, one in pairs.items()
                },
            }
        )
    return found


def seconds_of(done: dict[Pick, dict[str, Any]], share: float) -> dict[str, float]:
    """The median over seeds of the seconds that each way's network was trained for, as many steps as any other's."""
    picks = [pick for pick in done if pick.share == share and "seconds" in done[pick]]
    ways = dict.fromkeys(pick.way for pick in picks)
    return {way: median(done[pick]["seconds"] for pick in picks if pick.way == way) for way in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="contours")
    parser.add_argument("--target", default="cpu-ort-fp32-b1-t1")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.65, 0.4], help="of the dense network's milliseconds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[OURS, *WAYS], default=[OURS, *WAYS])
    parser.add_argument("--images", type=int, default=256, help="training images to calibrate on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what ours may make smaller")
    parser.add_argument("--epochs", type=int, default=4, help="of training each network")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, help="test images; all without it")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of timing")
    parser.add_argument("--seed", type=int, default=0, help="draws the order of timing")
    parser.add_argument("--work", type=Path, default=Path("results/prune_accuracy"), help="folder of what is done")
    parser.add_argument("--out", type=Path, default=Path("results/prune_accuracy.json"))
    given = parser.parse_args()
    library()
    source = Source(
        job_of(given.model, given.data, None, given.target, None, given.images, tuple(given.parts), 0, foreign=False)
    )
    picks = chosen(source, given)
    done = dict(every(source, picks, given))
    hits = {pick: one["hits"] for pick, one in done.items()}
    options = f"{given.model} --data {given.data} --target {given.target} --seeds {' '.join(map(str, given.seeds))}"
    options += f" --shares {' '.join(map(str, given.shares))} --ways {' '.join(given.ways)}"
    recipe = f"--images {given.images} --epochs {given.epochs} --batch-size {given.batch_size}"
    shares = [{**one, "seconds": seconds_of(done, one["share"])} for one in compared(hits, given)]
    result = {
        "command": f"python benchmarks/prune_accuracy.py {options} {recipe}",
        "machine": dict(source.job.table.content.fingerprint),
        "test_images": len(next(iter(hits.values()))),
        "steps": Healing(given.epochs, given.batch_size).recipe(source.arch, 0).steps(source.job.data),
        "shares": shares,
        "networks": [
            {**figures, "test_acc": float(hits[pick].mean()), "seconds": done[pick].get("seconds")}
            for pick, figures in picks.items()
        ],
        "untrained": {pick.name: float(own.mean()) for pick, own in hits.items() if pick.way == UNTRAINED},
    }
    write_json(given.out, result)
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
