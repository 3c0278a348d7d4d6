"""What int8 saves: the same networks in ONNX Runtime and OpenVINO, in float32 and int8.

    python benchmarks/int8.py --rounds 12 --out results/int8.json

All networks on all targets are timed in one run, visits interleaved; weights are random and ranges those of random images. Prints
the table of docs/latency.md.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.files import write_json
from nas.runtimes import RUNTIMES
from nas.target import Target, fingerprint
from nas.timing import settled, time_opened
from search_spaces import SPACES, zoo

TARGETS = [Target("cpu", runtime, dtype, 1, 1) for runtime in ("ort", "openvino") for dtype in ("fp32", "int8")]
SPACE_NETWORKS = ("hybrid_digits", "vit_digits")
ZOO_NETWORKS = ("deit_tiny_patch16_224", "efficientformer_l1")


def compare(rounds: int, seed: int) -> list[dict[str, Any]]:
    """A row for each network: milliseconds by target."""
    ends = {name: SPACES[name](classes=10) for name in SPACE_NETWORKS}
    archs = {f"{name}, smallest": space.smallest for name, space in ends.items()}
    archs |= {f"{name}, largest": space.largest for name, space in ends.items()}
    archs |= {name: zoo.arch(name) for name in ZOO_NETWORKS}
    sessions = {
        f"{name} {target.name}": RUNTIMES[target.runtime].from_arch(arch, target)
        for name, arch in archs.items()
        for target in TARGETS
    }
    reference = ends["hybrid_digits"].largest
    visits = time_opened(sessions, reference, TARGETS[0], rounds=rounds, seed=seed)
    found = settled(visits, rounds, None, None)
    return [
        {"name": name, **{target.name: asdict(found[f"{name} {target.name}"]) for target in TARGETS}} for name in archs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = compare(given.rounds, given.seed)
    print(f"| network | {' | '.join(target.name for target in TARGETS)} |\n|{'---|' * (len(TARGETS) + 1)}")
    for row in rows:
        cells = [f"{row[target.name]['ms']:.3g}" for target in TARGETS]
        print(f"| {row['name']} | {' | '.join(cells)} |")
    if given.out is not None:
        machines = {target.name: fingerprint(target) for target in TARGETS}
        command = f"python benchmarks/int8.py --rounds {given.rounds} --seed {given.seed}"
        write_json(given.out, {"command": command, "machines": machines, "networks": rows})


if __name__ == "__main__":
    main()
