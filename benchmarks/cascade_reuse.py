"""What reuse costs a cascade on a CPU: all three stages of DVT's DeiT-S with reuse against the same stages without, in one interleaved run.

    python benchmarks/cascade_reuse.py --out results/cascade_reuse.json

Every round runs all networks once on the same images, in an order drawn for the round; `ratio` is the median over the rounds of the time over that
without reuse, with its p10 and p90. "literal" is reuse as it is written down: 1x1 convolutions on maps in the layout that they ask for, resizing by
nearest and adaptive average along both axes, and logits written out in all stages. "prepacked" are the same networks with the weights of linear layers
laid out once, against the prepacked ones without reuse. Weights are random, which no time depends on.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.cost import macs
from nas.files import write_json
from nas.target import Target, fingerprint
from nas.train.retrain import fresh_network
from search_spaces import Arch, Cascade, zoo
from search_spaces.blocks import MB3D, Reuse
from search_spaces.blocks.attention import Attention
from search_spaces.blocks.reuse import RelationReuse, Relations
from search_spaces.cascade import CascadeNetwork
from search_spaces.prepack import prepack
from search_spaces.spread import SpreadPairs

NAME = "dvt_deit_small"


def apart(arch: Cascade) -> Cascade:
    """The same stages, none of which reuses."""

    def plain(stage: Arch) -> Arch:
        blocks = [spec for spec in stage.blocks if not isinstance(spec, Reuse)]
        return replace(
            stage, blocks=tuple(replace(spec, reuse=()) if isinstance(spec, MB3D) else spec for spec in blocks)
        )

    return Cascade(tuple(plain(stage) for stage in arch.stages))


class LiteralRelations(nn.Module):
    """The two convolutions, as such."""

    def __init__(self, source: RelationReuse) -> None:
        super().__init__()
        self.layers = nn.Sequential(source.fc1, nn.GELU(), source.fc2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class LiteralPairs(nn.Module):
    """Nearest and adaptive average along both axes, the class token's row and column by themselves."""

    def __init__(self, source: SpreadPairs) -> None:
        super().__init__()
        self.source, self.target = source.source, source.target

    def forward(self, x: Tensor) -> Tensor:
        return self._rows(self._rows(x).transpose(2, 3)).transpose(2, 3)

    def _rows(self, x: Tensor) -> Tensor:
        batch, heads, _, width = x.shape
        on_map = x[:, :, 1:].transpose(2, 3).reshape(batch, heads * width, *self.source)
        fine = F.adaptive_avg_pool2d(F.interpolate(on_map, scale_factor=2, mode="nearest"), self.target)
        patches = fine.reshape(batch, heads, width, -1).transpose(2, 3)
        return torch.cat([x[:, :, :1], patches], 2)


def literal(network: CascadeNetwork) -> CascadeNetwork:
    """The network with reuse as it is written down."""
    for block in list(network.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, RelationReuse):
                setattr(block, name, LiteralRelations(child))
            elif isinstance(child, SpreadPairs):
                setattr(block, name, LiteralPairs(child))
        if isinstance(block, Attention):
            block.register_forward_pre_hook(_written_out, with_kwargs=True)
    return network


def _written_out(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Attention that writes its logits out whether the next stage asks for them or not."""
    *others, relations = args
    told = relations.told if relations is not None and relations.told is not None else []
    return (*others, Relations(None if relations is None else relations.added, told)), kwargs


def timed(runs: Mapping[str, Callable[[Tensor], Any]], batch: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Milliseconds of each network in every round."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):  # two to warm up
        images = torch.randn(batch, 3, 224, 224, generator=generator)
        for name in rng.permutation(list(runs)):
            started = time.perf_counter()
            runs[name](images)
            if number >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def compare(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    arch = zoo.arch(NAME)
    assert isinstance(arch, Cascade)
    reusing, plain, written = (fresh_network(one, 0).eval() for one in (arch, apart(arch), arch))
    assert isinstance(written, CascadeNetwork)
    runs = {"without": plain, "reuse": reusing, "literal": literal(written)}
    runs |= {"prepacked without": prepack(plain), "prepacked reuse": prepack(reusing)}
    found: dict[str, Any] = {"macs_ratio": macs(arch) / macs(apart(arch)), "batches": {}}
    with torch.inference_mode():
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        wanted = reusing(images)
        for name in ("literal", "prepacked reuse"):
            off = max(float((one - other).abs().max()) for one, other in zip(runs[name](images), wanted, strict=True))
            found[f"max_abs_diff {name}"] = off
        for batch in given.batches:
            times = timed(runs, batch, given.rounds, given.seed)
            row: dict[str, Any] = {}
            for name, own in times.items():
                base = times["prepacked without" if name.startswith("prepacked") else "without"]
                ratios = np.array(own) / np.array(base)
                row[name] = {
                    "ms": np.quantile(own, (0.5, 0.1, 0.9)).tolist(),
                    "ratio": np.quantile(ratios, (0.5, 0.1, 0.9)).tolist(),
                }
            found["batches"][str(batch)] = row
            print(batch, row, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = compare(given)
    machine = fingerprint(Target("cpu", "eager", "fp32", 1, given.threads))
    command = (
        f"python benchmarks/cascade_reuse.py --batches {' '.join(map(str, given.batches))} --rounds {given.rounds}"
    )
    result = {"command": command, "machine": machine, "threads": given.threads, "network": NAME, **found}
    print(result)
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
