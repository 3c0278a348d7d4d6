"""What reuse gives a cascade of two exits, 49 and 196 tokens, on `contours`: accuracy and time of each exit, with features, relations, both or neither reused.

    python benchmarks/cascade_contours.py --out results/cascade_contours.json

Two ViTs of DeiT-Ti's shape see images of 56 pixels in patches of 8 and of 4. The cascades of a seed start from the same two networks, by `compress.cascade`, so
that all give the same at first, and are trained as `nas cascade train` does, by the same images in the same order. Accuracies are on the test split, which is read
once a cascade is trained. A difference is the mean over seeds, its interval a paired bootstrap over images of that mean, which tells nothing of other seeds: `each` has every seed's.
What is reused counts for nothing at first (see `compress.cascade`), and has parameters and MACs of its own, which are told beside. All four are timed in one interleaved
run, batch after batch of the same images, prepacked as `nas cascade bench` has them; weights are random then, which no time depends on.

What is done lies in `--work`: a run folder for each setting and seed, which goes on from its last epoch, and `times.json`. The JSON is made of what is there;
`--parts train` and `--parts times` do one of the two. Training computes in bfloat16 where autocast lets it (`ACCELERATE_MIXED_PRECISION`,
which `--no-bf16` leaves as it is); weights, loss and what is read of the test split are in float32.
`--stem 32` puts convolutions before the patches, as `contours_vit` has them; `--width 64 --heads 1 --depth 6` beside it is a study that takes hours in place of days.
With `--coarse-epochs` the cascades of a seed are made of networks that were trained: that of 49 tokens, which is soon trained, by itself, and then for `--fine-epochs` that of
196, from its weights, with positions interpolated and each patch's weights summed over the pixels that become one.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import interval
from numpy.typing import NDArray

import compress
from nas.cascade.bench import WARM_UP, prepacked, until_each
from nas.cascade.costs import until_macs
from nas.cascade.running import every_exit
from nas.cascade.training import load_cascade, train_cascade
from nas.cost import params
from nas.data import Data, Split
from nas.data.contours import CLASSES, SIZES, ContoursData
from nas.data.contours import load as load_contours
from nas.files import atomic_path, read_json, write_json
from nas.progress import say
from nas.runs import Run
from nas.target import Target, fingerprint
from nas.train.loop import Recipe
from nas.train.retrain import fresh_network, load_network, retrain
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position, Stem
from search_spaces.cascade import CascadeNetwork
from search_spaces.errors import InputError
from search_spaces.variants import variant_state

NONE = "none"
SETTINGS = {NONE: (False, False), "features": (True, False), "relations": (False, True), "both": (True, True)}
"""Whether features and relations are reused."""

STRIDE = 4  # of the stem's convolutions
READ = "test.npz"  # of a unit, once its test images are read
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # mean milliseconds, over those of both exits without reuse
Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Read:
    """What a unit's exits make of the test images."""

    confidence: NDArray[np.float32]  # (images, exits) the largest softmax score
    hits: Hits  # (images, exits) whether its class is the label

    def early(self, share: float) -> Hits:
        """(images,) whether an image's class is right where this share of them, the surest, leaves at the first exit."""
        surest = np.argsort(-self.confidence[:, 0], kind="stable")[: round(share * len(self.hits))]
        found = self.hits[:, -1].copy()
        found[surest] = self.hits[surest, 0]
        return found


Units = Mapping[tuple[str, int], Read]  # by setting and seed


def vit(patch: int, given: argparse.Namespace) -> Arch:
    """A plain ViT in the form of DeiT (arXiv 2012.12877), its patches behind two convolutions where there is a stem."""
    width = given.width // given.heads
    block = MB3D(given.heads, width, width, 4, residual="plain", bias=False, eps=1e-6)
    blocks = [block] * given.depth
    embed = (Stem(given.stem), Patch(given.width, patch // STRIDE)) if given.stem else (Patch(given.width, patch),)
    body = (*embed, ClassToken(), Position(), *blocks)
    return Arch(given.image_size, 3, (*body, Head(CLASSES, pool="token", eps=1e-6)))


def fresh(setting: str, seed: int, given: argparse.Namespace) -> CascadeNetwork:
    """A cascade of networks that were not trained: as a function, the same in all settings."""
    return linked([fresh_network(vit(patch, given), seed) for patch in given.patches], setting, seed)


def linked(networks: Sequence[Network], setting: str, seed: int) -> CascadeNetwork:
    """The cascade of networks with their weights; what is added is drawn from the seed."""
    features, relations = SETTINGS[setting]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return compress.cascade(networks, features, relations)


def pretrained(seed: int, given: argparse.Namespace) -> list[Network]:
    """Both networks, each trained by itself now or by an earlier call, the fine one from the weights of the coarse one."""
    coarse, fine = (vit(patch, given) for patch in given.patches)
    first = alone(coarse, None, given.coarse_epochs, given.work / f"coarse-{seed}", seed, given)
    start = refined(first, fine)
    return [first, alone(fine, start, given.fine_epochs, given.work / f"fine-{seed}", seed, given)]


def alone(
    arch: Arch, start: Network | None, epochs: int, folder: Path, seed: int, given: argparse.Namespace
) -> Network:
    """A network trained by itself, from fresh weights or those of `start`."""
    if not epochs:
        return start or fresh_network(arch, seed)
    recipe = replace(recipe_of(seed, given), epochs=epochs, lr=given.alone_lr or given.lr)
    weights = None if start is None else dict(start.state_dict())
    data = data_of(given, given.alone_images or given.images)
    summary = retrain(arch, data, recipe, folder, start=weights, resume=True)
    say(f"{folder.name}: search-validation {summary['val_acc']}")
    return load_network(folder)[0]


def refined(coarse: Network, arch: Arch) -> Network:
    """The network `arch`, which differs from the network `coarse` in smaller patches alone, with its weights."""
    weights = dict(coarse.state_dict())
    for number, (before, spec) in enumerate(zip(coarse.arch.blocks, arch.blocks, strict=True)):
        if isinstance(before, Patch) and isinstance(spec, Patch):
            name, parts = f"blocks.{number}.proj.weight", (spec.size, before.size // spec.size)
            weights[name] = weights[name].unflatten(3, parts).unflatten(2, parts).sum((3, 5))
    network = arch.build()
    network.load_state_dict(variant_state(weights, coarse.arch, arch))  # positions are interpolated
    return network


def data_of(given: argparse.Namespace, images: int) -> ContoursData:
    """Images of the cascade's size, with so many to train on."""
    sizes: dict[Split, int] = {**SIZES, "train": images, "val": given.val_images}
    return replace(load_contours(given.image_size, 0), sizes=sizes)


def recipe_of(seed: int, given: argparse.Namespace) -> Recipe:
    return Recipe(epochs=given.epochs, batch_size=given.batch_size, lr=given.lr, seed=seed, opt=given.opt)


def trained(setting: str, seed: int, data: Data, given: argparse.Namespace) -> None:
    """Train one cascade, or go on, and keep whether each exit is right about each test image."""
    folder = given.work / f"{setting}-{seed}"
    if not (folder / READ).exists():
        network = linked(pretrained(seed, given), setting, seed) if given.coarse_epochs else fresh(setting, seed, given)
        start = dict(network.state_dict())
        summary = train_cascade(network.arch, data, recipe_of(seed, given), folder, start=start, resume=True)
        say(f"{folder.name}: search-validation {summary['val_acc']}")
        confidence, hits = every_exit(load_cascade(folder)[0], data, "test", given.limit)
        with atomic_path(folder / READ) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, confidence=confidence, hits=hits)


def complete(given: argparse.Namespace) -> dict[tuple[str, int], Read]:
    """What is there of each setting and seed."""
    found: dict[tuple[str, int], Read] = {}
    for setting in SETTINGS:
        for seed in given.seeds:
            path = given.work / f"{setting}-{seed}" / READ
            if path.exists():
                with np.load(path) as archive:
                    found[setting, seed] = Read(archive["confidence"], archive["hits"])
    return found


def accuracies(units: Units) -> dict[str, Any]:
    """Of each setting the mean over its seeds, and how far it is ahead of no reuse on the seeds that both have."""
    means: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for setting in SETTINGS:
        seeds = [seed for own, seed in units if own == setting]
        if seeds:
            exits = np.stack([units[setting, seed].hits.mean(0) for seed in seeds])
            means[setting] = {"seeds": seeds, "test_acc": exits.mean(0).tolist()}
        both = [seed for seed in seeds if (NONE, seed) in units]
        if both and setting != NONE:
            pairs = [(units[setting, seed].hits, units[NONE, seed].hits) for seed in both]
            found = [ahead([(own[:, exit], other[:, exit]) for own, other in pairs]) for exit in range(2)]
            each = [list(seed) for seed in zip(*(own.pop("each") for own in found), strict=True)]
            differences[f"{setting} less {NONE}"] = {"seeds": both, "exits": found, "each": each}
    return {"means": means, "differences": differences}


def ahead(pairs: Sequence[tuple[Hits, Hits]]) -> dict[str, Any]:
    """How far the first of each seed's two (images,) is ahead of the second: mean over seeds, interval over images, and each seed's."""
    by_seed = np.stack([own.astype(np.float64) - other for own, other in pairs])
    over_images = by_seed.mean(0)
    each = by_seed.mean(1).tolist()
    return {"mean": float(over_images.mean()), "interval95": interval(over_images), "each": each}


def within_budgets(units: Units, batches: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By batch, of each mean budget what every setting makes of it: as few images as the budget allows, the surest, leave at the first exit.

    A setting whose first exit takes longer than the budget is left out. Only how sure an exit is decides, no label does.
    """
    found: dict[str, list[dict[str, Any]]] = {batch: [] for batch in batches}
    for batch, times in batches.items():
        for part in BUDGETS:
            budget = part * times[NONE]["ms"][1][0]
            shares: dict[str, float] = {}
            for setting, own in times.items():
                first, second = (ms for ms, _, _ in own["ms"])
                if first <= budget:
                    shares[setting] = max(0.0, (second - budget) / (second - first))
            hits = {(name, seed): unit.early(shares[name]) for (name, seed), unit in units.items() if name in shares}
            line: dict[str, Any] = {"part": part, "ms": budget, "leave": shares}
            for setting in shares:
                seeds = [seed for name, seed in hits if name == setting]
                pairs = [(hits[setting, seed], hits[NONE, seed]) for seed in seeds if (NONE, seed) in hits]
                if pairs:
                    test_acc = float(np.mean([hits[setting, seed].mean() for seed in seeds]))
                    line[setting] = {"test_acc": test_acc, **({} if setting == NONE else {"ahead": ahead(pairs)})}
            found[batch].append(line)
    return found


def timed(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one batch until each exit, of all settings in turn: median, p10, p90, and of the ratio to no reuse in the same round."""
    torch.set_num_threads(given.threads)
    networks = {setting: prepacked(fresh(setting, 0, given).eval()) for setting in SETTINGS}
    rng, generator = np.random.default_rng(given.seed), torch.Generator().manual_seed(given.seed)
    batches: dict[str, Any] = {}
    for batch in given.batches:
        times: dict[str, list[list[float]]] = {setting: [] for setting in networks}
        for number in range(given.rounds + WARM_UP):
            images = torch.randn(batch, 3, given.image_size, given.image_size, generator=generator)
            for setting in rng.permutation(list(networks)):
                found = until_each(networks[setting], images)
                if number >= WARM_UP:
                    times[setting].append(found)
        ms = {setting: np.array(own) for setting, own in times.items()}
        batches[str(batch)] = {
            setting: {"ms": _spread(own), "ratio": _spread(own / ms[NONE])} for setting, own in ms.items()
        }
        say(f"batch {batch}: {batches[str(batch)]}")
    machine = fingerprint(Target("cpu", "eager", "fp32", 1, given.threads))
    return {"threads": given.threads, "rounds": given.rounds, "machine": machine, "batches": batches}


def _spread(values: NDArray[np.float64]) -> list[list[float]]:
    """Of (rounds, exits), median, p10 and p90 of each exit."""
    found: list[list[float]] = np.quantile(values, (0.5, 0.1, 0.9), axis=0).T.tolist()
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument(
        "--stem",
        type=int,
        default=0,
        help="channels of two convolutions before the patches, as in contours_vit; 0: none",
    )
    parser.add_argument("--image-size", type=int, default=56)
    parser.add_argument("--patches", type=int, nargs=2, default=[8, 4], help="pixels of each side, coarse and fine")
    parser.add_argument("--images", type=int, default=SIZES["train"], help="to train on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--val-images", type=int, default=SIZES["val"], help="of search-validation")
    parser.add_argument("--coarse-epochs", type=int, default=0, help="of the coarse network alone; 0: both start fresh")
    parser.add_argument("--fine-epochs", type=int, default=0, help="of the fine network alone, after that")
    parser.add_argument("--alone-images", type=int, help="to train each alone on; by default those of --images")
    parser.add_argument("--alone-lr", type=float, help="of each alone; by default that of --lr")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--opt", default="adamw", help="optimizer, by timm's name")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="train with bfloat16")
    parser.add_argument("--limit", type=int, help="test images; all without it")
    parser.add_argument("--parts", nargs="+", choices=["train", "times"], default=["train", "times"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at a time that are timed")
    parser.add_argument("--rounds", type=int, default=25, help="of timing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="draws the order of timing")
    parser.add_argument("--work", type=Path, help="folder of what is done; by default beside --out")
    parser.add_argument("--out", type=Path, default=Path("results/cascade_contours.json"))
    given = parser.parse_args()
    if given.stem % 2 or any(patch % STRIDE for patch in given.patches if given.stem):
        parser.error(f"--stem is an even number, and with it --patches are multiples of {STRIDE}")
    if given.fine_epochs and not given.coarse_epochs:
        parser.error("--fine-epochs are from the coarse network's weights; give --coarse-epochs, too")
    given.work = given.work or given.out.with_suffix("")
    try:
        Run.start(given.work, "cascade_contours", shape_of(given), resume=True)  # refuses the folder of another study
    except InputError as error:
        parser.error(str(error))
    return given


DECIDING = (  # what units must agree on
    "width heads depth stem image_size patches images epochs batch_size lr opt bf16 limit val_images coarse_epochs fine_epochs alone_images alone_lr"
)


def shape_of(given: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(given, name) for name in DECIDING.split()}


def study_of(given: argparse.Namespace) -> dict[str, Any]:
    """The other options that figures depend on."""
    return {name: getattr(given, name) for name in ("parts", "seeds", "batches", "rounds", "threads")}


def flags(shape: Mapping[str, Any]) -> str:
    """The options that give a study."""
    found = []
    for name, value in shape.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            found.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(found)


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    if given.bf16:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    shape = shape_of(given)
    times = given.work / "times.json"
    if "times" in given.parts and not times.exists():
        write_json(times, timed(given))
    if "train" in given.parts:
        data = data_of(given, given.images)
        for seed in given.seeds:
            for setting in given.settings:
                trained(setting, seed, data, given)
    units = complete(given)
    known = read_json(times) if times.exists() else None
    archs = {setting: fresh(setting, 0, given).arch for setting in SETTINGS}
    result = {
        "command": f"python benchmarks/cascade_contours.py {flags({**shape, **study_of(given)})}",
        **shape,
        "tokens": [(given.image_size // patch) ** 2 for patch in given.patches],
        "test_images": len(next(iter(units.values())).hits) if units else 0,
        "macs": {setting: until_macs(arch).tolist() for setting, arch in archs.items()},
        "params": {setting: params(arch) for setting, arch in archs.items()},
        "units": [
            {"setting": setting, "seed": seed, "test_acc": own.hits.mean(0).tolist()}
            for (setting, seed), own in units.items()
        ],
        **accuracies(units),
        "times": known,
        "within_budgets": within_budgets(units, known["batches"]) if known and units else {},
    }
    write_json(given.out, result)
    print(json.dumps(result["means"] | result["differences"]))


if __name__ == "__main__":
    main()
