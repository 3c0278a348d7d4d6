"""What parts of the published networks are worth, on small images: Mobile-Former's tokens and bridges, MobileViT's sampler, SReT's loops.

    python benchmarks/ablations.py --out results/ablations.json
    python benchmarks/ablations.py --epochs 1 --images 500 --limit 500 --rounds 2 --work results/ablations/trial --out trial.json

- `mobile_former`: 26M, its M = 3 tokens beside 1 to 6, and all of its bridges to the tokens, or back to the map, off.
- `mobilevit`: XXS, trained on images of 64 pixels, or of a side drawn for each batch (`nas retrain --sides`); read at all of these sides.
- `sret`: the shape of SReT-T at half its width, without groups, each block applied once, twice or three times with a projection after each time.

All networks of a family see as many images by the same recipe, and all without the sampler the same ones in the same order. Networks are trained by
`nas retrain`'s own path, and their accuracies on search-validation printed as they come. Once all are trained the test split is read, which nothing else reads; a difference is the mean over seeds, its interval a paired
bootstrap over images of that mean, which tells nothing of other seeds: `test_acc_by_seed` has each. At the end all networks are timed in one interleaved run. What is done lies in `--work`: a folder for each run,
and the timings; an interrupted benchmark goes on from there with the same command. `--train` does nothing but train, so that
two processes can each train some `--families`, and a third call without it reads and times them all.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Hits, interval, kept

from nas import data as datasets
from nas.cost import macs, params
from nas.data import Data
from nas.data.loading import visible
from nas.data.memory import GeneratedData
from nas.evaluate import correct
from nas.files import read_json, write_json
from nas.progress import say
from nas.target import Target, fingerprint
from nas.timing import time_networks
from nas.train.loop import Recipe
from nas.train.retrain import load_network, retrain
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, MobileFormer, MobileFormerEmbed, MobileFormerPool, SideTokens
from search_spaces.errors import InputError
from search_spaces.variants import extract_variant
from search_spaces.zoo.sret import sret

SIDE = 64
SIDES = (48, 64, 80)  # of the sampler: what MobileViT's 160 to 320 are to its 256, to a grid of 16
MOST_TOKENS, MOST_LOOPS = 6, 3


@dataclass(frozen=True)
class Arm:
    """One of the networks that a family's ablation compares."""

    name: str
    arch: Arch
    base: str  # the arm that it is compared with
    sides: tuple[int, ...] = ()  # trained on images of these
    read: tuple[int, ...] = (SIDE,)  # at these sides; the first is what it is compared by


def mobile_former(classes: int) -> Iterator[Arm]:
    whole = zoo.arch("mobile_former_26m").with_classes(classes).at(SIDE)
    counts = {spec.count for spec in whole.blocks if isinstance(spec, SideTokens)}
    base = f"{counts.pop()} tokens"
    for count in range(1, MOST_TOKENS + 1):

        def counted(spec: BlockSpec, count: int = count) -> BlockSpec:
            return replace(spec, count=count) if isinstance(spec, SideTokens) else spec

        yield Arm(f"{count} token{'s' if count > 1 else ''}", _each(whole, counted), base)
    yield Arm("no bridge to the tokens", _each(whole, _without_to_former), base)
    yield Arm("no bridge to the map", _each(whole, _without_to_mobile), base)


def _each(arch: Arch, change: Callable[[BlockSpec], BlockSpec]) -> Arch:
    return replace(arch, blocks=tuple(change(spec) for spec in arch.blocks))


def _without_to_former(spec: BlockSpec) -> BlockSpec:
    if isinstance(spec, MobileFormer | MobileFormerEmbed | MobileFormerPool):
        return replace(spec, to_former=False)
    return spec


def _without_to_mobile(spec: BlockSpec) -> BlockSpec:
    return replace(spec, to_mobile=False) if isinstance(spec, MobileFormer | MobileFormerEmbed) else spec


def mobilevit(classes: int) -> Iterator[Arm]:
    arch = zoo.arch("mobilevit_xxs").with_classes(classes).at(SIDE)
    base, read = "one side", (SIDE, *(side for side in SIDES if side != SIDE))
    yield Arm(base, arch, base, read=read)
    yield Arm("sampler", arch, base, SIDES, read)


def recursive(classes: int) -> Iterator[Arm]:
    whole = sret(32, 1, 3.6, 1).with_classes(classes).at(SIDE)
    for loops in range(1, MOST_LOOPS + 1):

        def looped(spec: BlockSpec, loops: int = loops) -> BlockSpec:
            return replace(spec, loops=loops, groups=(), orders=()) if isinstance(spec, MB3D) else spec

        yield Arm(f"{loops} loop{'s' if loops > 1 else ''}", _each(whole, looped), "2 loops")


@dataclass(frozen=True)
class Family:
    """Its arms for a number of classes, and how they are all trained: at the same rate MobileViT has not begun to learn when others have, and after
    five epochs some of Mobile-Former's arms had not, whichever they were."""

    arms: Callable[[int], Iterator[Arm]]
    epochs: int
    lr: float


FAMILIES = {
    "mobile_former": Family(mobile_former, 10, 2e-3),
    "mobilevit": Family(mobilevit, 12, 1e-3),
    "sret": Family(recursive, 5, 2e-3),
}


def dataset(images: int) -> Data:
    """`contours` with so many training images, whose first are the same for every number.

    Raises:
        InputError: there are none.
    """
    found = datasets.load("contours")
    assert isinstance(found, GeneratedData)
    if images < 1:
        raise InputError(f"training images must be 1 or more, got {images}")
    if images == found.size("train"):
        return found
    sizes = {**found.sizes, "train": images}
    return replace(found, name=f"{found.name}, {images} training images", sizes=sizes, held={})


def recipe(family: str, arm: Arm, seed: int, given: argparse.Namespace) -> Recipe:
    usual = FAMILIES[family]
    epochs = usual.epochs if given.epochs is None else given.epochs
    lr = usual.lr if given.lr is None else given.lr
    return Recipe(epochs, given.batch_size, lr, seed=seed, sides=arm.sides)


def folder_of(family: str, arm: Arm, seed: int, given: argparse.Namespace) -> Path:
    work: Path = given.work
    return work / f"{family}-{arm.name.replace(' ', '-')}-{seed}"


def trained(family: str, arm: Arm, seed: int, data: Data, given: argparse.Namespace) -> None:
    """Train one network, or go on, and print how good it is on search-validation."""
    folder = folder_of(family, arm, seed, given)
    summary = retrain(arm.arch, data, recipe(family, arm, seed, given), folder, resume=True)
    cost = f"{params(arm.arch):,} parameters, {macs(arm.arch) / 1e6:.2f} MMACs"
    say(f"{family}, {arm.name}, seed {seed}: {summary['val_acc']:.2%} of search-validation; {cost}")


def hits_of(family: str, arm: Arm, seed: int, data: Data, given: argparse.Namespace) -> dict[int, Hits]:
    """Of the test images at each side whether a trained network is right; what was read is kept."""
    folder = folder_of(family, arm, seed, given)
    network, arch, _ = load_network(folder)
    count = "all" if given.limit is None else given.limit
    found = {}
    for side in arm.read:
        own = network if side == arch.image_size else extract_variant(network, arch, arch.at(side))
        read = partial(correct, own, data.at(side), "test", given.limit)
        found[side] = kept(folder / f"hits-{side}-{count}.npz", read)
    return found


def summary(
    family: str,
    arms: Sequence[Arm],
    hits: Mapping[tuple[str, int], dict[int, Hits]],
    data: Data,
    given: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The arms of a family, each beside the one that it is compared with."""
    seeds = given.seeds
    mean = {
        arm.name: {side: np.stack([hits[arm.name, seed][side] for seed in seeds]).mean(0) for side in arm.read}
        for arm in arms
    }
    found = []
    for arm in arms:
        how = recipe(family, arm, seeds[0], given)
        own: dict[str, Any] = {
            "family": family,
            "arm": arm.name,
            "arch": arm.arch.id,
            "params": params(arm.arch),
            "macs": macs(arm.arch),
            "recipe": {key: value for key, value in how.described().items() if key != "seed"},
            "steps": how.steps(data),
            "test_acc": float(mean[arm.name][SIDE].mean()),
            "test_acc_by_seed": {str(seed): float(hits[arm.name, seed][SIDE].mean()) for seed in seeds},
        }
        if len(arm.read) > 1:
            own["test_acc_by_side"] = {str(side): float(one.mean()) for side, one in mean[arm.name].items()}
        if arm.name != arm.base:
            own["less"] = arm.base
            own["differences"] = {
                str(side): {"mean": float(one.mean()), "interval95": interval(one)}
                for side in arm.read
                for one in [mean[arm.name][side] - mean[arm.base][side]]
            }
        found.append(own)
    return found


def timings(archs: Sequence[Arch], given: argparse.Namespace) -> dict[str, Any]:
    """Of each network by its id, all in one run, or as an earlier call timed them."""
    path, target = given.work / "timing.json", Target.parse(given.target)
    asked = {"archs": [arch.id for arch in archs], "target": target.name, "rounds": given.rounds, "seed": given.seed}
    known = read_json(path) if path.exists() else {}
    if known.get("asked") != asked:
        measured = time_networks(archs, target, reference=archs[0], rounds=given.rounds, seed=given.seed)
        times = {arch.id: asdict(timing) for arch, timing in zip(archs, measured, strict=True)}
        known = {"asked": asked, "machine": fingerprint(target), "timings": times}
        write_json(path, known)
    return dict(known["timings"])


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    timing, difference = row["timing"], row.get("differences", {}).get(str(SIDE))
    cells = [row["family"], row["arm"], f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e6:.1f}"]
    cells += [f"{row['test_acc']:.1%}"]
    low, high = difference["interval95"] if difference else (0.0, 0.0)
    cells += [f"{100 * difference['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if difference else ""]
    cells += [f"{timing['median']:.2f} ({timing['p10']:.2f} to {timing['p90']:.2f})"]
    return f"| {' | '.join(cells)} |"


HEAD = """| family | network | params (M) | MMACs | test | points over its family's base (95%) | ms, median (p10 to p90) |
|---|---|---|---|---|---|---|"""


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Do all that is left; the rows that were written, none with `--train`."""
    Target.parse(given.target).check_here()
    torch.set_num_threads(given.threads)
    data = dataset(given.images)
    visible(data.size("test"), given.limit)  # refused before anything is trained
    families = {name: list(FAMILIES[name].arms(data.classes)) for name in given.families}
    for name, arms in families.items():
        for seed, arm in product(given.seeds, arms):
            trained(name, arm, seed, data, given)
    if given.train:
        return []
    rows: list[dict[str, Any]] = []
    for name, arms in families.items():
        hits = {(arm.name, seed): hits_of(name, arm, seed, data, given) for seed, arm in product(given.seeds, arms)}
        rows += summary(name, arms, hits, data, given)
    times = timings(list(dict.fromkeys(arm.arch for arms in families.values() for arm in arms)), given)
    rows = [{**row, "timing": times[row["arch"]]} for row in rows]
    write(rows, data, given)
    return rows


def write(rows: Sequence[Mapping[str, Any]], data: Data, given: argparse.Namespace) -> None:
    options = f"--families {' '.join(given.families)} --seeds {' '.join(map(str, given.seeds))} --images {given.images}"
    options += f" --batch-size {given.batch_size} --rounds {given.rounds}"
    options += "" if given.epochs is None else f" --epochs {given.epochs}"
    options += "" if given.lr is None else f" --lr {given.lr:g}"
    found = {
        "command": f"python benchmarks/ablations.py {options}",
        "machine": fingerprint(Target.parse(given.target)),
        "target": given.target,
        "data": data.name,
        "image_size": SIDE,
        "train_images": data.size("train"),
        "test_images": visible(data.size("test"), given.limit),
        "seeds": given.seeds,
        "networks": rows,
    }
    write_json(given.out, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=6_000, help="of training")
    parser.add_argument("--epochs", type=int, help="of every family; without it, each has its own")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, help="largest learning rate of every family; without it, each has its own")
    parser.add_argument("--limit", type=int, help="test images; all without it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of training")
    parser.add_argument("--train", action="store_true", help="train alone: nothing is read, timed or written to --out")
    parser.add_argument("--target", default="cpu-ort-fp32-b1-t1")
    parser.add_argument("--rounds", type=int, default=20, help="of timing")
    parser.add_argument("--seed", type=int, default=0, help="draws the order of timing")
    parser.add_argument("--work", type=Path, default=Path("results/ablations"), help="folder of what is done")
    parser.add_argument("--out", type=Path, default=Path("results/ablations.json"))
    given = parser.parse_args()
    try:
        rows = run(given)
    except InputError as error:
        parser.error(str(error))
    if rows:
        print("\n".join([HEAD, *map(line, rows)]))


if __name__ == "__main__":
    main()
