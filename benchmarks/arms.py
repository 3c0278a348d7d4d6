"""Training arms of an ablation alike, and comparing them on the test split image by image."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas import data as datasets
from nas.data import Data
from nas.evaluate import correct
from nas.files import atomic_path, write_json
from nas.target import Target, fingerprint
from nas.train.loop import Recipe
from nas.train.retrain import load_network, retrain
from search_spaces.arch import Arch, Network

__all__ = ["Arm", "Hits", "compare", "interval", "kept", "parser"]

BOOTSTRAP = 10_000
Hits = NDArray[np.bool_]  # (images,) of the test split: whether the best class is the label


@dataclass(frozen=True)
class Arm:
    """One way to build and train a network; `readings` gives the accuracies that are told of it, by name."""

    name: str
    arch: Arch
    recipe: Recipe
    readings: Callable[[Network, Arch, Data], Mapping[str, Hits]] = lambda network, arch, data: {
        "": correct(network, data, "test")
    }


def interval(difference: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """95% interval of a mean difference by a paired bootstrap over images, or over the `groups` that they come from."""
    names, inverse = np.unique(np.arange(len(difference)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(inverse, difference), np.bincount(inverse)
    rng, means = np.random.default_rng(0), []
    for _ in range(BOOTSTRAP):
        drawn = rng.integers(len(names), size=len(names))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def kept(path: Path, make: Callable[[], Hits]) -> Hits:
    """What `make` gives, or gave an earlier call: it is kept in a file."""
    if not path.exists():
        hits = make()
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, hits=hits)
    with np.load(path) as archive:
        found: Hits = archive["hits"]
    return found


def parser(about: str | None, out: str, epochs: int) -> argparse.ArgumentParser:
    """The options that all ablations share."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--epochs", type=int, default=epochs)
    found.add_argument("--data", default="contours")
    found.add_argument("--runs", type=Path, default=Path(out).with_suffix(""), help="folder of the run folders")
    found.add_argument("--out", type=Path, default=Path(out))
    return found


def read(arm: Arm, data: Data, seed: int, runs: Path) -> dict[str, Hits]:
    """Train one arm with one seed, or take what an earlier call trained; its readings."""
    folder = runs / f"{arm.name.replace(' ', '-')}-{seed}"
    retrain(arm.arch, data, arm.recipe, folder, resume=True)
    network, arch, _ = load_network(folder)
    return {f"{arm.name} {name}".strip(): hits for name, hits in arm.readings(network, arch, data).items()}


def compare(
    arms: Callable[[int], Sequence[Arm]], pairs: Sequence[tuple[str, str]], options: argparse.Namespace, command: str
) -> None:
    """Train `arms(seed)` for every seed, and write and print each reading and the differences of `pairs` of readings."""
    data, seeds = datasets.load(options.data), []
    for seed in options.seeds:
        hits: dict[str, Hits] = {}
        for arm in arms(seed):
            hits |= read(arm, data, seed, options.runs)
        differences = []
        for one, other in pairs:
            difference = hits[one].astype(float) - hits[other].astype(float)
            differences.append(
                {"of": one, "less": other, "mean": difference.mean(), "interval95": interval(difference)}
            )
        seeds.append(
            {"seed": seed, "test_acc": {name: own.mean() for name, own in hits.items()}, "differences": differences}
        )
    found: dict[str, Any] = {
        "command": f"{command} --seeds {' '.join(map(str, options.seeds))} --epochs {options.epochs}",
        "data": options.data,
        "test_images": data.size("test"),
        "seeds": seeds,
        "mean_acc": {name: float(np.mean([one["test_acc"][name] for one in seeds])) for name in seeds[0]["test_acc"]},
        "mean_differences": [
            {"of": one, "less": other, "mean": float(np.mean([s["differences"][i]["mean"] for s in seeds]))}
            for i, (one, other) in enumerate(pairs)
        ],
        "machine": fingerprint(Target.parse("cpu-ort-fp32-b1-t1")),
    }
    write_json(options.out, found)
    print(json.dumps({name: found[name] for name in ("mean_acc", "mean_differences")}))
