"""What ONNX Runtime takes in int8 and in float for convolutions that make several channels of each one, and for others.

    python benchmarks/int8_widening.py --out results/int8_widening.json

Each stands between two of one place, since a convolution that is left in float between others in int8 is run in int8 all the same; Mobile-Former's are followed by activations in
float. One thread, batch 1; both ways in turn, with the median of all runs and of their ratio, and its p10 and p90.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.files import write_json
from nas.runtimes.onnxruntime import export_onnx
from nas.runtimes.quantise import quantise
from nas.target import Target, fingerprint

SHAPES = ((12, 24, 12, 112), (16, 64, 16, 56), (32, 128, 32, 28), (64, 64, 64, 28), (64, 64, 1, 28))
"""Channels, filters, groups and pixels of a side: the first three widen maps of `mobile_former_96m`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("results/int8_widening.json"))
    given = parser.parse_args()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = []
    for channels, filters, groups, side in SHAPES:
        widening = nn.Conv2d(channels, filters, 3, padding=1, groups=groups)
        network = nn.Sequential(nn.Conv2d(channels, channels, 1), widening, nn.Conv2d(filters, channels, 1)).eval()
        images = torch.randn(1, channels, side, side)
        graph = export_onnx(network, images)
        both = [
            onnxruntime.InferenceSession(one, options, providers=["CPUExecutionProvider"])
            for one in (graph, quantise(graph, [images.numpy()]))
        ]
        runs = np.empty((given.rounds, 2))
        for row in runs:
            for way, session in enumerate(both):
                asked = {session.get_inputs()[0].name: images.numpy()}
                session.run(None, asked)
                started = time.perf_counter()
                session.run(None, asked)
                row[way] = 1000 * (time.perf_counter() - started)
        ratio = np.quantile(runs[:, 1] / runs[:, 0], (0.5, 0.1, 0.9)).tolist()
        shape = {"channels": channels, "filters": filters, "groups": groups, "side": side}
        found.append(
            {**shape, "float_ms": float(np.median(runs[:, 0])), "int8_ms": float(np.median(runs[:, 1])), "ratio": ratio}
        )
        print(found[-1], flush=True)
    machine = fingerprint(Target.parse("cpu-ort-int8-b1-t1"))
    command = f"python benchmarks/int8_widening.py --rounds {given.rounds}"
    write_json(given.out, {"command": command, "machine": machine, "convolutions": found})


if __name__ == "__main__":
    main()
