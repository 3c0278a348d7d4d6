"""The published networks: parameters and MACs beside their papers', and milliseconds beside a DeiT of similar MACs.

    python benchmarks/zoo.py --target cpu-ort-fp32-b1-t1 --out results/zoo.json
    python benchmarks/zoo.py --names deit_tiny_patch16_224 sret_t

For each network the twin is the DeiT whose number of heads, 64 channels each, brings its MACs nearest. All networks are timed in
one run, visits interleaved; weights are random, as no time depends on them but that of thresholds, which stand where a network
of their mean counts does. Prints the table of docs/zoo.md.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.cost import macs, params
from nas.files import write_json
from nas.target import Target, fingerprint
from nas.timing import time_networks
from search_spaces import Cascade, zoo
from search_spaces.arch import Arch
from search_spaces.zoo.vit import vit

PAPERS: dict[str, tuple[float | None, float | None]] = {  # millions of parameters, billions of MACs
    "efficientformer_l1": (12.3, 1.3),
    "efficientformer_l3": (31.3, 3.9),
    "efficientformer_l7": (82.1, 10.2),
    "efficientformerv2_s0": (3.5, 0.40),
    "efficientformerv2_s1": (6.1, 0.65),
    "efficientformerv2_s2": (12.6, 1.25),
    "efficientformerv2_l": (26.1, 2.56),
    "sret_t": (4.8, 1.1),
    "sret_lt": (5.0, 1.2),
    "sret_s": (20.9, 4.2),
    "deit_tiny_patch16_224": (5.7, 1.3),
    "deit_small_patch16_224": (22.1, 4.6),
    "deit_base_patch16_224": (86.6, 17.5),
    "asvit_deit_small": (22.1, 3.0),
    "mobile_former_26m": (3.2, 0.026),
    "mobile_former_52m": (3.5, 0.052),
    "mobile_former_96m": (4.6, 0.096),
    "mobile_former_151m": (7.6, 0.151),
    "mobile_former_214m": (9.4, 0.214),
    "mobile_former_294m": (11.4, 0.294),
    "mobile_former_508m": (14.0, 0.508),
    "mobilevit_xxs": (1.3, 0.42),
    "mobilevit_xs": (2.3, 1.05),
    "mobilevit_s": (5.6, 2.03),
}
HEADS = range(1, 17)  # of the DeiTs to compare with


def twin(arch: Arch) -> Arch:
    """The DeiT whose MACs are nearest, as a ratio."""
    return min((vit(heads) for heads in HEADS), key=lambda deit: max(macs(deit) / macs(arch), macs(arch) / macs(deit)))


def compare(names: list[str], target: Target, rounds: int, seed: int) -> list[dict[str, Any]]:
    """A row for each network."""
    archs = {name: zoo.arch(name).keeping(adaptive=False) for name in names}
    twins = {name: twin(arch) for name, arch in archs.items()}
    every = list(dict.fromkeys([*archs.values(), *twins.values()]))
    timings = time_networks(every, target, reference=zoo.arch("deit_tiny_patch16_224"), rounds=rounds, seed=seed)
    taken = dict(zip(every, timings, strict=True))
    rows = []
    for name, arch in archs.items():
        deit = twins[name]
        rows.append(
            {
                "name": name,
                "params": params(arch),
                "paper_params_m": PAPERS.get(name, (None, None))[0],
                "macs": macs(arch),
                "paper_gmacs": PAPERS.get(name, (None, None))[1],
                "timing": asdict(taken[arch]),
                "deit": {
                    "heads": next(heads for heads in HEADS if vit(heads) == deit),
                    "macs": macs(deit),
                    "timing": asdict(taken[deit]),
                },
                "ms_per_mac_over_deits": (taken[arch].ms / macs(arch)) / (taken[deit].ms / macs(deit)),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/zoo.md."""
    lines = [
        "| network | params (M) | paper | GMACs | paper | ms | p10 - p90 | its DeiT: GMACs | ms | ms per MAC, over its DeiT's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own, deit = row["timing"], row["deit"]
        cells = [
            f"`{row['name']}`",
            f"{row['params'] / 1e6:.2f}",
            str(row["paper_params_m"] or "-"),
            f"{row['macs'] / 1e9:.3f}",
            str(row["paper_gmacs"] or "-"),
            f"{own['ms']:.1f}",
            f"{own['p10']:.1f} - {own['p90']:.1f}",
            f"{deit['macs'] / 1e9:.3f}",
            f"{deit['timing']['ms']:.1f}",
            f"{row['ms_per_mac_over_deits']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--names", nargs="+", default=[name for name in zoo.names() if not isinstance(zoo.arch(name), Cascade)]
    )
    parser.add_argument("--target", default="cpu-ort-fp32-b1-t1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    target = Target.parse(given.target)
    rows = compare(given.names, target, given.rounds, given.seed)
    print(markdown(rows))
    if given.out is not None:
        command = f"python benchmarks/zoo.py --target {target.name} --rounds {given.rounds} --seed {given.seed}"
        write_json(given.out, {"command": command, "machine": fingerprint(target), "networks": rows})


if __name__ == "__main__":
    main()
