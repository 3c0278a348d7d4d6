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
from typing import Any, NamedTuple

from nas.cost import macs, params
from nas.files import write_json
from nas.target import Target, fingerprint
from nas.timing import time_networks
from search_spaces import Cascade, zoo
from search_spaces.arch import Arch
from search_spaces.zoo.vit import vit


class Paper(NamedTuple):
    """What a network's paper says of it; None where it does not."""

    params_m: float | None = None  # millions
    gmacs: float | None = None
    top1: float | None = None  # % on ImageNet-1k, at the resolution that the zoo has


PAPERS = {
    "efficientformer_l1": Paper(12.3, 1.3, 79.2),
    "efficientformer_l3": Paper(31.3, 3.9, 82.4),
    "efficientformer_l7": Paper(82.1, 10.2, 83.3),
    "efficientformerv2_s0": Paper(3.5, 0.40, 75.7),
    "efficientformerv2_s1": Paper(6.1, 0.65, 79.0),
    "efficientformerv2_s2": Paper(12.6, 1.25, 81.6),
    "efficientformerv2_l": Paper(26.1, 2.56, 83.3),
    "sret_t": Paper(4.8, 1.1, 76.0),  # with groups, not distilled; so are the next two
    "sret_lt": Paper(5.0, 1.2, 76.7),
    "sret_s": Paper(20.9, 4.2, 81.9),
    "deit_tiny_patch16_224": Paper(5.7, 1.3, 72.2),  # not distilled; so are the next two
    "deit_small_patch16_224": Paper(22.1, 4.6, 79.8),
    "deit_base_patch16_224": Paper(86.6, 17.5, 81.8),
    "asvit_deit_tiny": Paper(),
    "asvit_deit_small": Paper(22.1, 3.0, 79.6),
    "asvit_deit_base": Paper(),
    "mobile_former_26m": Paper(3.2, 0.026, 64.0),
    "mobile_former_52m": Paper(3.5, 0.052, 68.7),
    "mobile_former_96m": Paper(4.6, 0.096, 72.8),
    "mobile_former_151m": Paper(7.6, 0.151, 75.2),
    "mobile_former_214m": Paper(9.4, 0.214, 76.7),
    "mobile_former_294m": Paper(11.4, 0.294, 77.9),
    "mobile_former_508m": Paper(14.0, 0.508, 79.3),
    "mobilevit_xxs": Paper(1.3, 0.42, 69.0),  # at 256 pixels; so are the next two
    "mobilevit_xs": Paper(2.3, 1.05, 74.8),
    "mobilevit_s": Paper(5.6, 2.03, 78.4),
    "dvt_deit_small": Paper(),  # whose papers tell the accuracy of image by image exits, not of each exit
    "dvt_t2t_vit_12": Paper(),
    "dvt_t2t_vit_14": Paper(),
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
                "paper_params_m": PAPERS[name].params_m,
                "macs": macs(arch),
                "paper_gmacs": PAPERS[name].gmacs,
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
