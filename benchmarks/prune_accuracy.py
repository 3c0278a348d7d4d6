"""Accuracy at measured milliseconds: `nas prune` against other ways to make the same network as fast.

    python benchmarks/prune_accuracy.py contours_vit --data contours --out results/prune_accuracy.json

For each share of the dense network's milliseconds, each way (`prune_ways.py`) gives the slowest of its networks that is measured within it;
ours is pruned until it is. All of them and the dense network are timed in one interleaved run, and compared by the table's statistic; what is over its budget gives way to the next
smaller one, and all are timed again. Then each is trained as `nas prune --train-epochs` does: same images in the same order, same recipe, same teacher (the
dense network, whose scores are computed once for all). Ours is trained for `--epochs`, and each other way, seed by seed, for the same seconds: some of its own
steps, timed just before, tell how many steps that is. `random-tokens` keeps as many patches as `tokens` at the same places, but random ones. `ours untrained` is calibration alone.

Accuracies are on the test split, which nothing else reads. A difference is the mean over seeds, its interval a paired bootstrap over images of that
mean. What is done lies in `--work`: the networks chosen, weights, and for each image whether it was right (`.npz`); an interrupted benchmark goes on
from there. `--epochs 1 --limit 500 --rounds 2 --seeds 0` tries it out.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from arms import Hits, interval, kept
from prune_choice import DENSE, OURS, UNTRAINED, Pick, chosen, started
from prune_ways import WAYS, Source, at_random
from torch import Tensor, nn
from torch_pruned import library

from nas.data import Data
from nas.evaluate import correct
from nas.files import write_json
from nas.progress import say
from nas.pruning import PARTS, Healing
from nas.pruning.job import job_of
from nas.pruning.saved import remembered
from nas.runs import Run
from nas.timing import ROUNDS
from nas.train.loop import Recipe, fit
from nas.train.retrain import Teacher, asked, supervised
from search_spaces import zoo
from search_spaces.arch import Network

WARM, PROBED = 5, 40  # steps before those that are timed, and these


@dataclass(frozen=True)
class Cut(Recipe):
    """A recipe whose last epoch ends after some steps."""

    last: int = 0  # steps of the last epoch; 0: all

    def batches(self, data: Data, epoch: int) -> list[tuple[int, int]]:
        """As `Recipe.batches`."""
        plan = super().batches(data, epoch)
        return plan[: self.last] if self.last and epoch == self.epochs - 1 else plan

    @classmethod
    def of(cls, recipe: Recipe, steps: int, data: Data) -> "Cut":
        """The recipe with so many steps, at least one."""
        whole = len(recipe.batches(data, 0))
        epochs, last = divmod(max(1, steps), whole)
        return cls(**{**vars(recipe), "epochs": epochs + (last > 0)}, last=last)


@dataclass(frozen=True)
class Known(Teacher):
    """A teacher whose scores of a seed's images are computed before any training, so that no student's seconds have them."""

    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by seed and step

    @torch.no_grad()
    def learn(self, data: Data, recipe: Recipe, steps: int) -> None:
        """Compute those of so many steps."""
        epoch, step = 0, 0
        self.network.eval()
        while (recipe.seed, steps - 1) not in self.known:
            for images, _ in data.loader(
                "train", recipe.batch_size, seed=recipe.draw_seed(epoch), augment=recipe.augment
            ):
                if (recipe.seed, step) not in self.known:
                    self.known[recipe.seed, step] = self.network(images)
                step += 1
            epoch += 1

    def scores(self, images: Tensor, recipe: Recipe, step: int) -> Tensor:
        """Logits (B, classes) for the images of a step."""
        return self.known[recipe.seed, step]


def step_seconds(pick: Pick, recipe: Recipe, teacher: Known, source: Source, given: argparse.Namespace) -> float:
    """The median seconds of a training step of a network."""
    network = learner(pick, given)
    objective = supervised(recipe, teacher, network.arch)
    marks: list[float] = []

    def marked(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        marks.append(time.perf_counter())
        return objective(model, images, labels, step)

    with tempfile.TemporaryDirectory() as folder:
        probe = Cut.of(recipe, WARM + PROBED, source.job.data)
        fit(network, marked, source.job.data, probe, Path(folder) / "checkpoint.pt", f"time {pick.name}")
    return float(np.median(np.diff(marks[WARM:])))


def learner(pick: Pick, given: argparse.Namespace) -> Network:
    """A network as it is before any training, which drops patches at random if that is its way."""
    network = zoo.from_checkpoint(started(given, pick))
    return at_random(network, pick.seed) if pick.way == "random-tokens" else network


def trained(
    pick: Pick, recipe: Recipe, teacher: Known, source: Source, given: argparse.Namespace, seconds: float | None
) -> dict[str, Any]:
    """Train one network from where it starts, or go on: the steps and seconds that took, and whether each test image is right.

    With `seconds` for as many steps as take so long, else as long as the recipe says.
    """
    folder, data = given.work / "trained" / pick.name, source.job.data
    if seconds is not None:
        path = given.work / "steps" / f"{pick.name}.json"
        steps = remembered(path, lambda: round(seconds / step_seconds(pick, recipe, teacher, source, given)))
        recipe = Cut.of(recipe, int(steps), data)
    teacher.learn(data, recipe, recipe.steps(data))
    network = learner(pick, given)
    config = asked(network.arch, data, recipe, dict(network.state_dict()), teacher)
    run = Run.start(folder, "prune_accuracy", config, resume=True)
    with run.locked():
        if run.summary is None:
            (folder / "checkpoint.pt").unlink(missing_ok=True)  # of a killed training, whose seconds nobody knows
            began = time.perf_counter()
            objective = supervised(recipe, teacher, network.arch)
            fit(network, objective, data, recipe, folder / "checkpoint.pt", f"train {pick.name}")
            taken = time.perf_counter() - began
            run.save_network(network.arch, dict(network.state_dict()))
            run.finish({"seconds": taken, "steps": recipe.steps(data)})
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
    every_way = [pick for pick in picks if pick.way != DENSE]
    order = sorted(every_way, key=lambda pick: (pick.seed, -pick.share, pick.way != OURS))
    healing, whole = Healing(given.epochs, given.batch_size), source.job.teacher()
    teacher = Known(whole.network, whole.classes, whole.weight, whole.temperature)
    seconds: dict[tuple[float, int], float] = {}  # of ours, by share and seed
    for number, pick in enumerate(order, 1):
        if pick.way == OURS:
            network = zoo.from_checkpoint(started(given, pick))
            hits = right(given.work / "untrained" / f"{pick.name}.npz", network, source, given)
            yield replace(pick, way=UNTRAINED), {"hits": hits}
        recipe = healing.recipe(source.arch, pick.seed)
        teacher.learn(source.job.data, recipe, WARM + PROBED)
        found = trained(pick, recipe, teacher, source, given, seconds.get((pick.share, pick.seed)))
        if pick.way == OURS:
            seconds[pick.share, pick.seed] = found["seconds"]
        say(
            f"{number} of {len(order)}: {pick.name} {found['hits'].mean():.4f}, {found['steps']} steps, {found['seconds']:.0f} s of training"
        )
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


def median_of(done: dict[Pick, dict[str, Any]], share: float, figure: str) -> dict[str, float]:
    """The median over seeds of the `seconds` or `steps` of each way's training."""
    picks = [pick for pick in done if pick.share == share and figure in done[pick]]
    ways = dict.fromkeys(pick.way for pick in picks)
    return {way: median(done[pick][figure] for pick in picks if pick.way == way) for way in ways}


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
    if OURS not in given.ways:
        parser.error(f"--ways needs {OURS}, for whose seconds all others are trained")
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
    figures = ("seconds", "steps")
    shares = [
        {**one, **{figure: median_of(done, one["share"], figure) for figure in figures}}
        for one in compared(hits, given)
    ]
    result = {
        "command": f"python benchmarks/prune_accuracy.py {options} {recipe}",
        "machine": dict(source.job.table.content.fingerprint),
        "test_images": len(next(iter(hits.values()))),
        "shares": shares,
        "networks": [
            {**known, "test_acc": float(hits[pick].mean()), **{figure: done[pick].get(figure) for figure in figures}}
            for pick, known in picks.items()
        ],
        "untrained": {pick.name: float(own.mean()) for pick, own in hits.items() if pick.way == UNTRAINED},
    }
    write_json(given.out, result)
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
