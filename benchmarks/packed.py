"""AS-ViT per image: packed execution against dense, and padding to the batch's longest beside it, in one interleaved run.

    python benchmarks/packed.py --batches 1 8 32 --threads 2 --rounds 15 --out results/packed.json
    python benchmarks/packed.py --device cuda --dtype bf16 --batches 256 --out results/packed_cuda.json

A network of DeiT-S's shape keeps on average .7, .49 and .34 of its patches after blocks 3, 6 and 9. Its weights are random, with
queries and keys large enough that attention depends on the image, and its thresholds are calibrated on the very images. Dense
is the same network with all patches; padded runs the kept tokens of every image, filled up to the longest, with a mask in the
fused kernel. On a CPU packs are of a few images (`AT_ONCE` in search_spaces/arch.py), "dense in parts" is dense, as many at a time,
and all of it runs once more with the weights of linear layers prepacked, against dense with prepacked weights.
Median, p10 and p90 over the rounds. `efficiency` is the speed-up over dense divided by the ratio of MACs: 1 says that every MAC saved is time saved.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compress.curves import curve_of
from compress.thresholds import calibrate
from nas.cost import macs
from nas.data import load
from nas.files import write_json
from nas.target import Target, fingerprint
from nas.thresholded import in_batches
from nas.train.retrain import fresh_network
from search_spaces.arch import AT_ONCE, Arch, Network
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.token_prune import TokenPruneModule
from search_spaces.prepack import prepack
from search_spaces.tokens import Chosen, keep_above, score
from search_spaces.zoo.vit import pruned_at, vit

HEADS, LOCATIONS, SHARES = 6, (4, 7, 10), (0.7, 0.49, 0.34)
GAIN = 6.0  # that queries and keys are larger by than a fresh network's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MORE = 4  # times as many rounds for the smaller batches, at most
IN_PARTS = 64  # largest batch that dense runs in parts too
COUNTED = 32  # images at a time whose counts are taken


def networks(images: Tensor, seed: int) -> tuple[Network, Network]:
    """The pruned network, its thresholds calibrated on the images, and the dense one with the same weights."""
    arch = pruned_at(vit(HEADS), LOCATIONS)
    arch = arch.keeping([round(196 * share) for share in SHARES])
    pruned = fresh_network(arch, seed).eval()
    with torch.no_grad():
        for block in pruned.modules():
            if isinstance(block, MB3DModule):
                mixer = block.token_mixer
                mixer.qkv.weight.unflatten(0, (mixer.heads, -1))[:, : 2 * mixer.key_dim] *= GAIN
    calibrate(pruned, arch, in_batches(images))
    dense = vit(HEADS).build().eval()
    own = [block for block in pruned.blocks if not isinstance(block, TokenPruneModule)]
    for block, source in zip(dense.blocks, own, strict=True):
        block.load_state_dict(source.state_dict())
    return pruned, dense


def padded(network: Network, images: Tensor) -> Tensor:
    """Logits of the pruned network where every image has as many tokens as the batch's longest, some of them masked."""
    x: Tensor = images
    mask: Tensor | None = None  # (B, n) true for tokens that are there
    scores: Tensor | None = None
    for position, _, scored, _ in network.schedule:
        block: Any = network.blocks[position]
        if isinstance(block, TokenPruneModule):
            assert scores is not None
            assert block.threshold is not None
            above = keep_above(scores, block.threshold, block.total, None if mask is None else mask[:, 1:])
            above = above if mask is None else above & mask[:, 1:]
            tokens = torch.cat([above.new_ones(len(above), 1), above], 1)
            order = tokens.int().argsort(dim=1, descending=True, stable=True)[:, : int(tokens.sum(1).max())]
            x = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
            mask = tokens.gather(1, order)
        elif isinstance(block, MB3DModule):
            x, scores = padded_block(block, x, mask, scored)
        else:
            x = block(x)
    return x


def padded_block(block: MB3DModule, x: Tensor, mask: Tensor | None, scored: bool) -> tuple[Tensor, Tensor | None]:
    """One transformer block on padded tokens, and the patches' scores where they are asked for."""
    mixer = block.token_mixer
    batch, count, _ = x.shape
    qkv = mixer.qkv(block.norm1(x)).reshape(batch, count, mixer.heads, -1).transpose(1, 2)
    q, k, v = qkv.split([mixer.key_dim, mixer.key_dim, mixer.value_dim], dim=-1)
    seen = None if mask is None else mask[:, None, None, :]
    context = F.scaled_dot_product_attention(q, k, v, seen)
    x = block.ls1(x, mixer.proj(context.transpose(1, 2).reshape(batch, count, -1)))
    x = block.ls2(x, block.mlp(block.norm2(x)))
    if not scored:
        return x, None
    logits = q[:, :, :1] * mixer.key_dim**-0.5 @ k.transpose(-2, -1)
    weights = (logits if seen is None else logits.masked_fill(~seen, float("-inf"))).softmax(-1)
    return x, score(weights, context, 0)[:, 1:]


def counts_of(network: Network, images: Tensor) -> NDArray[np.int64]:
    """(images, locations) patches that each image keeps."""
    rows = []
    for batch in images.split(COUNTED):
        trace: list[Chosen] = []
        network(batch, trace)
        rows.append(torch.stack([one.counts for one in trace], 1).cpu())
    return torch.cat(rows).numpy()


def mean_macs(arch: Arch, counts: NDArray[np.int64]) -> float:
    """Mean over images of the MACs at their counts."""
    curve = curve_of(arch, lambda spec, state: float(spec.macs(state)), range(1, 197))
    return float(curve([torch.from_numpy(column.astype(np.float64)) for column in counts.T]).mean())


def arms(pruned: Network, dense: Network) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to run the two networks."""
    return {
        "dense": dense,
        "packed": pruned,
        "padded": lambda x: padded(pruned, x),
        "dense in parts": lambda x: torch.cat([dense(part) for part in x.tensor_split(-(-len(x) // AT_ONCE))]),
    }


def timed(
    runs: dict[str, Callable[[Tensor], Tensor]], images: Tensor, batch: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Milliseconds of each execution, (rounds,), on the same batches, in an order drawn for every round."""
    rng, wait = np.random.default_rng(seed), torch.cuda.synchronize if images.is_cuda else lambda: None
    batches = [images[rng.permutation(len(images))[:batch]] for _ in range(rounds)]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(batches[0])
    for own in batches:
        for name in rng.permutation(list(runs)):
            wait()
            started = time.perf_counter()
            runs[name](own)
            wait()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(taken) for name, taken in times.items()} | {"batches": batches}


def compare(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    images = torch.cat([one for one, _ in load("contours224", seed=given.seed).loader("val", 32, limit=given.images)])
    pruned, dense = networks(images, given.seed)
    dtype, device = DTYPES[given.dtype], torch.device(given.device)
    pruned, dense, images = pruned.to(device, dtype), dense.to(device, dtype), images.to(device, dtype)
    runs = arms(pruned, dense)
    if device.type == "cpu":
        runs |= {f"prepacked {name}": run for name, run in arms(prepack(pruned), prepack(dense)).items()}
    found: dict[str, Any] = {"batches": {}}
    with torch.inference_mode():
        every = counts_of(pruned, images)
        found["kept"] = {"mean": every.mean(0).tolist(), "std": every.std(0).tolist(), "most": every.max(0).tolist()}
        difference = (padded(pruned, images[:8]) - pruned(images[:8])).abs().max()
        found["padded_max_abs_diff"] = float(difference)
        for batch in given.batches:
            chosen = {name: run for name, run in runs.items() if "parts" not in name or AT_ONCE < batch <= IN_PARTS}
            rounds = given.rounds * min(MORE, max(given.batches) // batch)
            times = timed(chosen, images, batch, rounds, given.seed)
            works = [mean_macs(pruned.arch, counts_of(pruned, own)) for own in times.pop("batches")]
            ratios = macs(dense.arch) / np.array(works)  # of each round, whose images keep numbers of their own
            row: dict[str, Any] = {"rounds": rounds, "macs_ratio": float(np.median(ratios))}
            for name, taken in times.items():
                speed = times["prepacked dense" if name.startswith("prepacked") else "dense"] / taken
                row[name] = {"ms": np.quantile(taken, (0.5, 0.1, 0.9)).tolist(), "speed_up": float(np.median(speed))}
                row[name]["efficiency"] = np.quantile(speed / ratios, (0.5, 0.1, 0.9)).tolist()
            found["batches"][str(batch)] = row
            print(batch, row, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=256, help="that batches are drawn from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = compare(given)
    target = Target("cpu", "ort", "fp32", 1, given.threads)  # for the machine alone: torch runs here
    machine = fingerprint(target) if given.device == "cpu" else {"gpu": torch.cuda.get_device_name()}
    command = f"python benchmarks/packed.py --batches {' '.join(map(str, given.batches))} --rounds {given.rounds}"
    result = {"command": command, "machine": machine, "threads": given.threads, "dtype": given.dtype, **found}
    print(result)
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
