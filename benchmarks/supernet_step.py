"""Seconds and peak memory of a supernet's training step (largest, smallest and one random network, forward and backward).

    python benchmarks/supernet_step.py --space hybrid --batch 8 --steps 5 --out results/supernet_step_hybrid.json

On random images; the optimiser's step is included. One process a space, so that the peak is its own.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2

from nas.files import write_json
from nas.target import Target, fingerprint
from nas.train.loop import Recipe
from nas.train.supernet import new_supernet, sandwich, space_named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="hybrid_digits")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    space = space_named(arguments.space, arguments.classes)
    supernet, size = new_supernet(space, 0).train(), space.largest.image_size
    recipe = Recipe(epochs=1, batch_size=arguments.batch)
    optimizer = create_optimizer_v2(supernet, "adamw", lr=1e-3, weight_decay=0.05, fused=True)
    losses = sandwich(space, recipe, arguments.steps + 1)
    rng, seconds = torch.Generator().manual_seed(0), []
    for step in range(arguments.steps + 1):  # the first warms up
        images = torch.randn(arguments.batch, 3, size, size, generator=rng)
        labels = torch.randint(arguments.classes, (arguments.batch,), generator=rng)
        started = time.perf_counter()
        optimizer.zero_grad()
        for loss in losses(supernet, images, labels, step):
            loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    low, middle, high = np.quantile(seconds[1:], (0.1, 0.5, 0.9))
    found = {
        "command": f"python benchmarks/supernet_step.py --space {arguments.space} --classes {arguments.classes} "
        f"--batch {arguments.batch} --steps {arguments.steps}",
        "parameters": sum(parameter.numel() for parameter in supernet.parameters()),
        "networks": str(space.size),
        "seconds": {"median": middle, "p10": low, "p90": high, "n": arguments.steps},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "machine": fingerprint(Target.parse("cpu-ort-fp32-b1-t1")),
    }
    write_json(arguments.out, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
