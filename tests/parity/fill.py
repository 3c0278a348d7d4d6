"""Reference weights without a weight file: the same wave for a name and shape on every machine."""

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray


def wave(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A deterministic array in [-1, 1] for `name`."""
    seed = zlib.crc32(name.encode())
    i = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    step = 1.0 + (seed % 9973) / 9973.0
    phase = (seed // 9973) % 6283 / 1000.0
    return np.asarray(np.sin(i * i * 0.001 * step + i * step + phase).reshape(shape))


def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 value of the state-dict entry `name`."""
    w, leaf = wave(name, shape), name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        w = 1.0 + 0.2 * w
    elif leaf in ("running_mean", "bias") and len(shape) <= 1 and "coefficient" not in name:
        w = 0.1 * w
    elif len(shape) >= 2 and leaf == "weight":
        w = w * math.sqrt(2.0 / math.prod(shape[1:]))
    elif len(shape) <= 1:
        w = 1.0 + 0.1 * w
    else:
        w = 0.1 * w
    return torch.from_numpy(np.asarray(w, dtype=np.float32))


def image(size: int, batch: int) -> torch.Tensor:
    """The reference input (batch, 3, size, size)."""
    return torch.from_numpy(wave(f"input{size}", (batch, 3, size, size)).astype(np.float32))


def permutation(n: int) -> torch.Tensor:
    """The token order that stood in for SReT's random permutation of n tokens."""
    return torch.from_numpy(np.argsort(wave(f"perm{n}", (n,)), kind="stable"))
