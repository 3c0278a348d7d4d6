"""A cascade as ONNX files, one of each exit: what a stage passes on is among its outputs, and the next one's inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.export import write_onnx
from search_spaces.blocks.reuse import Passed
from search_spaces.cascade import CascadeNetwork
from search_spaces.errors import InputError

__all__ = ["check_exits", "export_exits"]

CLOSE = 1e-3  # times the largest logit, if above 1


class _Exit(nn.Module):
    """One stage: images, and what the stage before passed -> logits, and what it passes on."""

    def __init__(self, network: CascadeNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, images: Tensor, *passed: Tensor) -> tuple[Tensor, ...]:
        given = Passed(passed[0], passed[1] if len(passed) > 1 else None) if passed else None
        logits, found = self.network.exit(self.number, images, given)
        return (logits, *_tensors(self.network, self.number, found))


def _tensors(network: CascadeNetwork, number: int, passed: Passed) -> tuple[Tensor, ...]:
    """What an exit passes to the next one that reuses anything of it."""
    if number + 1 == len(network.parts) or not network.reuses(number + 1):
        return ()
    return (passed.tokens,) if passed.relations is None else (passed.tokens, passed.relations)


NAMES = ("tokens", "relations")


@torch.no_grad()
def export_exits(network: CascadeNetwork, batch: int, folder: Path) -> list[Path]:
    """Write `exit_0.onnx` and so on for batches of `batch` images: inputs `images`, `tokens_in`, `relations_in`, outputs `logits` and `tokens`, `relations` where it passes them on.

    All take the very same images (batch, channels, H, W), of the cascade's size; the file of a stage of smaller ones makes them smaller.

    Raises:
        InputError: the folder has files of more exits.
    """
    if (folder / f"exit_{len(network.parts)}.onnx").exists():
        raise InputError(f"{folder} has files of a cascade with more exits; choose another --out")
    network.eval()
    images, paths = network.arch.example(batch), list[Path]()
    given: tuple[Tensor, ...] = ()
    for number in range(len(network.parts)):
        module = _Exit(network, number)
        found = module(images, *given)
        ins, outs = [f"{name}_in" for name in NAMES[: len(given)]], list(NAMES[: len(found) - 1])
        path = folder / f"exit_{number}.onnx"
        paths.append(write_onnx(module, (images, *given), path, ["images", *ins], ["logits", *outs]))
        given = found[1:]
    return paths


@torch.no_grad()
def check_exits(network: CascadeNetwork, paths: list[Path], images: Tensor) -> list[float]:
    """Run the files one after the other in ONNX Runtime on one batch; the largest difference of each exit's logits from the network's.

    Raises:
        InputError: a file disagrees; all are removed then.
    """
    from onnxruntime import InferenceSession

    wanted, differing = network.eval()(images), list[float]()
    given: dict[str, Any] = {"images": images.numpy()}
    for path, own in zip(paths, wanted, strict=True):
        session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        asked = [entry.name for entry in session.get_inputs()]
        logits, *passed = session.run(None, {name: given[name] for name in asked})
        given |= {f"{name}_in": value for name, value in zip(NAMES, passed, strict=False)}
        differing.append(float(np.abs(logits - own.numpy()).max()))
        if not differing[-1] <= CLOSE * max(1.0, float(own.abs().max())):  # which NaN is not
            for one in paths:
                one.unlink()
            raise InputError(
                f"{path.name} gives other scores than the cascade, by {differing[-1]:.2g}, and was removed; report this network"
            )
    return differing
