"""How much of the multiply-accumulates that pruning removes comes back as time: ours beside Torch-Pruning, structure alone.

    python benchmarks/prune_structure.py --out results/prune_structure.json

A network of DeiT-S's shape loses heads, widths of queries and values, neurons, and channels of its embedding, but no blocks, patches or pixels, until
it has a given number of times fewer multiply-accumulates: ours by `compress.prune` under milliseconds of the target's table, which is measured first
where it is missing (`blocks alone`: the embedding stays as wide as it is); Torch-Pruning's (timm's deit_small_patch16_224) with its documented call, once with channels of every head removed, once
with whole heads. Weights and images are random. On ONNX Runtime all are exported alike; eager, Torch-Pruning's are timm's modules as
its users run them. All are timed in one interleaved run. `efficiency` is the speed-up over the library's own dense network over the ratio of
multiply-accumulates: 1 says that every one saved is time saved; median, p10 and p90 over the rounds. `possible` is the best that any choice of sizes
reaches by the table, and `rows` how the table's milliseconds fall beside multiply-accumulates, from the dense size on. Targets that `--out` has already are
measured anew, others in it stay.
"""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch_pruned import at_macs, library, twin

from compress.knapsack import Group, solve
from compress.prune import Macs, Prunable, Pruned, prepare
from nas.cost import macs
from nas.files import read_json, write_json
from nas.interleave import Timed
from nas.measure import measure_table
from nas.progress import say
from nas.pruning import Milliseconds
from nas.runtimes import RUNTIMES
from nas.runtimes.onnxruntime import Session, export_onnx
from nas.runtimes.random_networks import fixed_images
from nas.runtimes.torch_session import conditions
from nas.tables import tables_dir
from nas.target import Target, fingerprint
from nas.timing import time_opened
from nas.train.retrain import fresh_network
from nas.visits import Visit
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D
from search_spaces.blocks.residual import hidden_width
from search_spaces.spaces.frames import Frame, attention_blocks, frames, in_frame, whole_frame
from search_spaces.spaces.remains import Remains, key_widths, neurons, sizes_in, widths
from search_spaces.states import Tokens
from search_spaces.zoo.vit import HEADS, vit

PARTS = ("heads", "queries", "values", "neurons", "width")
TARGETS = ("cpu-ort-fp32-b1-t1", "cpu-ort-fp32-b8-t1", "cpu-eager-fp32-b1-t2", "cpu-eager-fp32-b8-t2")
NEAR = 0.02  # share by which a ratio of multiply-accumulates may miss what is asked for
TRIES = 4  # budgets for that
GAIN = 6.0  # that queries and keys are larger by than a fresh network's, so that attention depends on the image
WAYS = {"Torch-Pruning, channels": False, "Torch-Pruning, heads": True}

Floats = NDArray[np.float64]


class Eager:
    """A model of another library in torch, operator by operator; see `nas.interleave.Timed`."""

    def __init__(self, model: nn.Module, target: Target, size: int) -> None:
        self.model, self.target = model, target
        self.images = torch.from_numpy(fixed_images((target.batch, 3, size, size)))
        self.live: nn.Module | None = None

    def reopen(self) -> None:
        self.live = copy.deepcopy(self.model)

    def close(self) -> None:
        self.live = None

    def time(self, repeats: int) -> list[float]:
        if self.live is None:
            self.reopen()
        assert self.live is not None
        with conditions(self.target) as changed:
            if changed:
                self.live(self.images)
            marks = [time.perf_counter_ns()]
            for _ in range(repeats):
                self.live(self.images)
                marks.append(time.perf_counter_ns())
        return [(after - before) / 1e6 for before, after in pairwise(marks)]


def dense_network(size: str, seed: int) -> Network:
    network = fresh_network(vit(HEADS[size]), seed).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("qkv.weight"):
                position = int(name.split(".")[1])
                spec = network.arch.blocks[position]
                assert isinstance(spec, MB3D)
                weight.unflatten(0, (spec.heads, -1))[:, : 2 * spec.key_dim] *= GAIN
    return network


def at_ratio(prunable: Prunable, ratio: float, frame: Frame | None) -> Pruned:
    """What is left of the network, in a frame or in any, under the budget at which it has `ratio` times fewer multiply-accumulates."""
    dense = prunable.dense.arch
    wanted, budget = macs(dense) / ratio, prunable.cost.total(dense) / ratio
    found: list[Pruned] = []
    for _ in range(TRIES):
        found.append(prunable.within(budget, frame))
        miss = macs(found[-1].arch) / wanted
        if abs(miss - 1) <= NEAR:
            break
        budget /= miss
    return min(found, key=lambda one: abs(macs(one.arch) / wanted - 1))


def possible(dense: Arch, ms: Milliseconds, ratio: float, frame: Frame) -> float:
    """The best efficiency that sizes with `ratio` times fewer multiply-accumulates reach in a frame by the table, whatever they lose."""
    arch, work, groups = in_frame(dense, frame), Macs(), []
    left_work, left_ms = work.total(arch), ms.total(arch)
    for number, place in enumerate(attention_blocks(arch)):
        spec, state, sizes = arch.blocks[place], arch.states[place], sizes_in(dense, number, frame, PARTS)
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        whole_work, whole_ms = work.block(spec, state), ms.block(spec, state)
        left_work, left_ms = left_work - whole_work, left_ms - whole_ms
        shapes = product(sizes.heads, sizes.key_dims, sizes.value_dims)
        forms = [replace(spec, heads=heads, key_dim=key, value_dim=value) for heads, key, value in shapes]
        fewer = [replace(spec, ratio=count / state.channels) for count in sizes.hidden]
        for kind, base_work, base_ms in ((forms, 0.0, 0.0), (fewer, whole_work, whole_ms)):
            done = np.array([work.block(one, state) - base_work for one in kind])
            # At least so much work is to be left: the least milliseconds alone would be those of the smallest sizes.
            groups.append(Group(place, -done, np.array([ms.block(one, state) - base_ms for one in kind])))
    picks = solve(groups, {}, left_work - work.total(dense) / ratio)
    if picks is None:
        return 0.0
    for group, pick in zip(groups, picks, strict=True):
        assert pick is not None  # no block may go
        left_work, left_ms = left_work - group.costs[pick], left_ms + group.losses[pick]
    return float(ms.total(dense) / left_ms / (work.total(dense) / left_work))


def rows_of(dense: Arch, ms: Milliseconds) -> dict[str, Any]:
    """Shares of a block's milliseconds and multiply-accumulates at each size of one part, and the shares outside the blocks."""
    work = Macs()
    spec, state = next((spec, state) for spec, state in dense.steps() if isinstance(spec, MB3D))
    assert isinstance(spec, MB3D) and isinstance(state, Tokens)
    kinds: dict[str, list[tuple[int, MB3D]]] = {
        "heads": [(n, replace(spec, heads=n)) for n in range(spec.heads, 0, -1)],
        "queries": [(n, replace(spec, key_dim=n)) for n in key_widths(spec)],
        "values": [(n, replace(spec, value_dim=n)) for n in widths(spec.value_dim)],
        "neurons": [
            (n, replace(spec, ratio=n / state.channels)) for n in neurons(hidden_width(state.channels, spec.ratio))
        ],
    }
    whole_ms, whole_work = ms.block(spec, state), work.block(spec, state)
    found: dict[str, Any] = {
        part: [
            {"size": n, "ms": ms.block(one, state) / whole_ms, "macs": work.block(one, state) / whole_work}
            for n, one in sizes
        ]
        for part, sizes in kinds.items()
    }
    count = sum(isinstance(one, MB3D) for one in dense.blocks)
    outside = {"ms": 1 - count * whole_ms / ms.total(dense), "macs": 1 - count * whole_work / work.total(dense)}
    return {**found, "outside_blocks": outside}


def speed_ups(visits: Sequence[Visit], name: str, dense: str) -> Floats:
    """(rounds,) how many times as fast as `dense` a network was, in each round by the medians of its visit."""
    of = {(visit.network, visit.round): float(np.median(visit.runs)) for visit in visits}
    rounds = sorted({number for network, number in of if network == name})
    return np.array([of[dense, number] / of[name, number] for number in rounds if (dense, number) in of])


def sessions_of(
    ours: Mapping[str, Arch], theirs: Mapping[str, nn.Module], target: Target, size: int
) -> dict[str, Timed]:
    """What is timed, by name: all exported alike, or eager as each library runs it."""
    found: dict[str, Timed] = {name: RUNTIMES[target.runtime].from_arch(arch, target) for name, arch in ours.items()}
    example = torch.from_numpy(fixed_images((target.batch, 3, size, size)))
    for name, model in theirs.items():
        eager = target.runtime == "eager"
        found[name] = Eager(model, target, size) if eager else Session(export_onnx(model, example), target, name)
    for session in found.values():
        session.close()
    return found


def on_target(
    target: Target,
    network: Network,
    rivals: Mapping[str, nn.Module],
    works: dict[str, float],
    given: argparse.Namespace,
) -> dict[str, Any]:
    """All figures of one target; `works` are the rivals' multiply-accumulates, by name."""
    dense = network.arch
    table = measure_table(Remains(dense, PARTS), target, given.tables, minutes=given.minutes, resume=True)
    ms, whole = Milliseconds(table), whole_frame(dense)
    images = dense.example(given.images)
    prunable = prepare(network, ms, [images], parts=PARTS, progress=lambda what: say(f"{target.name}: {what}"))
    ours = {f"ours, blocks alone {ratio}": at_ratio(prunable, ratio, whole) for ratio in given.ratios}
    ours |= {f"ours {ratio}": at_ratio(prunable, ratio, None) for ratio in given.ratios}
    archs = {"ours dense": dense, **{name: found.arch for name, found in ours.items()}}
    visits = time_opened(
        sessions_of(archs, rivals, target, dense.image_size),
        table.reference,
        target,
        rounds=given.rounds,
        seed=given.seed,
        floor=table.reference_ms,
    )
    works = {**works, **{name: float(macs(arch)) for name, arch in archs.items()}}
    networks: dict[str, dict[str, Any]] = {}
    for name in [*archs, *rivals]:
        own = "ours dense" if name.startswith("ours") else "timm dense"
        speed, ratio = speed_ups(visits, name, own), works[own] / works[name]
        runs = np.concatenate([visit.runs for visit in visits if visit.network == name])
        networks[name] = {
            "ms": quantiles(runs),
            "macs_ratio": ratio,
            "speed_up": quantiles(speed),
            "efficiency": quantiles(speed / ratio),
        }
    for name, found in ours.items():
        networks[name] |= {
            "predicted_efficiency": found.dense_cost / found.cost / networks[name]["macs_ratio"],
            "possible": max(
                possible(dense, ms, networks[name]["macs_ratio"], frame)
                for frame in frames(dense, PARTS)
                if "alone" not in name or frame == whole
            ),
            "frame": found.frame.label,
            "blocks": [spec.label for spec in found.arch.blocks if isinstance(spec, MB3D)],
        }
    print(
        target.name,
        {name: (round(one["macs_ratio"], 2), one["efficiency"]) for name, one in networks.items()},
        flush=True,
    )
    return {"table": table.path.name, "verdict": table.verdict, "networks": networks, "rows": rows_of(dense, ms)}


def quantiles(values: Floats) -> list[float]:
    """Median, p10 and p90."""
    return [float(value) for value in np.quantile(values, (0.5, 0.1, 0.9))]


def rivals_of(
    network: Network, ratios: Sequence[float]
) -> tuple[dict[str, nn.Module], dict[str, float], dict[str, Any]]:
    """Torch-Pruning's networks, as timm's modules, by name; their multiply-accumulates, and what of each is left."""
    of = twin(network)
    modules: dict[str, nn.Module] = {"timm dense": of.model}
    works: dict[str, float] = {"timm dense": float(macs(network.arch))}
    about: dict[str, Any] = {}
    for way, whole_heads in WAYS.items():
        for ratio in ratios:
            found, share = at_macs(of, macs(network.arch) / ratio, whole_heads=whole_heads)
            name = f"{way} {ratio}"
            modules[name], works[name] = found.model, float(macs(found.network.arch))
            about[name] = {
                "pruning_ratio": share,
                "width": whole_frame(found.network.arch).width,
                "blocks": [spec.label for spec in found.network.arch.blocks if isinstance(spec, MB3D)],
            }
    return modules, works, {"theirs": about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--size", choices=HEADS, default="small")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.7, 3.6])
    parser.add_argument("--images", type=int, default=8, help="random ones that ours is calibrated on")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--minutes", type=float, help="for each table that is measured")
    parser.add_argument("--tables", type=Path, default=tables_dir(), help="folder of the tables")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    library()
    targets = [Target.parse(name) for name in given.targets]
    network = dense_network(given.size, given.seed)
    rivals, works, about = rivals_of(network, given.ratios)
    options = f"--size {given.size} --images {given.images} --rounds {given.rounds}"
    options += "" if given.minutes is None else f" --minutes {given.minutes:g}"
    about |= {"torch_pruning": version("torch-pruning"), "machine": fingerprint(targets[0])}
    found = {} if given.out is None or not given.out.exists() else read_json(given.out)
    for target in targets:
        command = f"python benchmarks/prune_structure.py --targets {target.name} {options}"
        found[target.name] = {"command": command, **about, **on_target(target, network, rivals, works, given)}
        if given.out is not None:
            write_json(given.out, found)


if __name__ == "__main__":
    main()
