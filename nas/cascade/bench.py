"""What early exit gives in images a second: real, with the batches that are left, and if regrouping cost nothing."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.cascade.running import run_early
from search_spaces.blocks.reuse import Passed
from search_spaces.cascade import CascadeNetwork
from search_spaces.prepack import prepack

__all__ = ["ROUNDS", "Timed", "bench", "exit_ms", "prepacked", "until_each"]

WARM_UP, ROUNDS = 2, 25  # visits of each exit before those that count, and those


@dataclass(frozen=True)
class Timed:
    """A cascade's early exit against running all of its stages, on the same batches in turn."""

    exit_ms: NDArray[np.float64]  # (exits,) an image as far as each exit, in whole batches; medians
    early_s: float  # all batches, images leaving
    full_s: float  # all batches, all stages
    logits: Tensor  # (images, classes) of the exits taken
    taken: Tensor  # (images,)
    last: Tensor  # (images, classes) of the last exit


def prepacked(network: CascadeNetwork) -> CascadeNetwork:
    """The network for inference on a CPU."""
    found = prepack(network)
    assert isinstance(found, CascadeNetwork)
    return found


def exit_ms(network: CascadeNetwork, images: Tensor, batch: int, rounds: int) -> NDArray[np.float64]:
    """(exits,) median milliseconds of an image as far as each exit, in batches of `batch` of the `images`, over `rounds`."""
    found = []
    for number in range(rounds + WARM_UP):
        start = (number * batch) % max(1, len(images) - batch + 1)
        found.append(until_each(network, images[start : start + batch]))
    whole: NDArray[np.float64] = np.median(np.array(found[WARM_UP:]), 0) / min(batch, len(images))
    return whole


@torch.inference_mode()
def until_each(network: CascadeNetwork, images: Tensor) -> list[float]:
    """Milliseconds until each exit of one batch (B, C, H, W), timed once."""
    passed: Passed | None = None
    times, started = [], time.perf_counter()
    for number in range(len(network.parts)):
        _, passed = network.exit(number, images, passed)
        times.append(1000 * (time.perf_counter() - started))
    return times


@torch.inference_mode()
def bench(
    network: CascadeNetwork,
    batches: Iterable[Tensor],
    first: Tensor,
    thresholds: NDArray[np.float64],
    batch: int,
    seed: int,
) -> Timed:
    """Run all `batches` (B, C, H, W) both ways, in an order drawn for every one; exits are timed on the `first` images (N, C, H, W)."""
    rng, seconds = np.random.default_rng(seed), {"early": 0.0, "full": 0.0}
    ways: dict[str, Callable[[Tensor], Any]] = {
        "early": lambda own: run_early(network, own, thresholds),
        "full": lambda own: network(own)[-1],
    }
    for way in ways.values():
        way(first[:batch])
    given: dict[str, list[Any]] = {"early": [], "full": []}
    for own in batches:
        for name in rng.permutation(list(ways)):
            started = time.perf_counter()
            given[name].append(ways[name](own))
            seconds[name] += time.perf_counter() - started
    logits, taken = (torch.cat(parts) for parts in zip(*given["early"], strict=True))
    full = torch.cat(given["full"])
    stages = exit_ms(network, first, batch, ROUNDS)
    return Timed(stages, seconds["early"], seconds["full"], logits, taken, full)
