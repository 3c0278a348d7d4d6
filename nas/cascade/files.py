"""A cascade as ONNX files, one of each exit: what a stage passes on is among its outputs, and the next one's inputs."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.cascade.costs import until_ms
from nas.export import Checked, write_onnx
from nas.files import publish
from nas.latency import LatencyTable
from nas.peak_memory import peak_mb, weights_mb
from nas.runs import CONFIG, digest
from nas.runtimes.onnxruntime import Chain, note_of
from nas.scratch import scratch_dir
from nas.target import Target
from nas.timing import ROUNDS, settled, time_opened
from search_spaces.blocks.reuse import Passed
from search_spaces.cascade import Cascade, CascadeNetwork, reuse_of
from search_spaces.errors import InputError

__all__ = ["are_exits", "check_exits", "export_cascade", "export_exits", "open_exits"]

BATCH = 32  # images that the network is compared on at a time
CLOSE = 1e-3  # times the largest logit, if above 1


class _Exit(nn.Module):
    """One stage: images, and what the stage before passed -> logits, and what it passes on."""

    def __init__(self, network: CascadeNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number
        self.names = _names(network, number - 1)

    def forward(self, images: Tensor, *passed: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, passed, strict=True))
        logits, found = self.network.exit(self.number, images, Passed(given.get("tokens"), given.get("relations")))
        told = [getattr(found, name) for name in _names(self.network, self.number)]
        return (logits, *told)


def _names(network: CascadeNetwork, number: int) -> tuple[str, ...]:
    """What of `Passed` the stage behind `number` reuses: so outputs are called, and with `_in` behind them the next file's inputs."""
    following = reuse_of(network.arch.stages[number + 1]) if -1 < number < len(network.parts) - 1 else None
    if following is None:
        return ()
    return (*(("tokens",) if following.width else ()), *(("relations",) if following.maps else ()))


WHOLE = "cascade.json"  # what a file calls the export that it is of


@torch.no_grad()
def export_exits(network: CascadeNetwork, batch: int, folder: Path) -> list[Path]:
    """Write `exit_0.onnx` and so on for batches of `batch` images: inputs `images`, `tokens_in`, `relations_in`, outputs `logits` and `tokens`, `relations` where it passes them on.

    All take the very same images (batch, channels, H, W), of the cascade's size; the file of a stage of smaller ones makes them smaller.

    Raises:
        InputError: the folder has files of more exits, or holds a run.
    """
    _check_free(folder, len(network.parts))
    network.eval()
    images, paths = network.arch.example(batch), list[Path]()
    whole = {"exits": len(network.parts), "batch": batch, "weights": digest(network.state_dict())}
    notes = {WHOLE: json.dumps(whole)}
    given: tuple[Tensor, ...] = ()
    for number in range(len(network.parts)):
        module = _Exit(network, number)
        found = module(images, *given)
        ins = [f"{name}_in" for name in module.names]
        names = ["images", *ins], ["logits", *_names(network, number)]
        paths.append(write_onnx(module, (images, *given), _path(folder, number), *names, notes))
        given = found[1:]
    return paths


def _check_free(folder: Path, exits: int) -> None:
    """Refuse a folder whose files would no longer belong together."""
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run; choose another --out")
    if _path(folder, exits).exists():
        raise InputError(f"{folder} has files of a cascade with more exits; choose another --out")


def are_exits(folder: Path) -> bool:
    """Whether a folder holds files of a cascade's exits."""
    return _path(folder, 0).is_file()


def open_exits(folder: Path) -> Chain:
    """The files of a folder that `export_exits` wrote, to run one after the other, of the batch size that they take, on one thread.

    Raises:
        InputError: a file is missing, not whole, or of another export than the first.
    """
    first = note_of(_path(folder, 0), WHOLE)
    if first is None:
        raise InputError(f"{_path(folder, 0)} does not say which cascade it is an exit of; export that again")
    whole = json.loads(first)
    paths = [_path(folder, number) for number in range(whole["exits"])]
    strange = next((path for path in paths if note_of(path, WHOLE) != first), None)
    if strange is not None:
        raise InputError(f"{strange} is of another export than {paths[0].name}; export the cascade again")
    return Chain(paths, Target("cpu", "ort", "fp32", whole["batch"], threads=1))


def _path(folder: Path, number: int) -> Path:
    return folder / f"exit_{number}.onnx"


@torch.no_grad()
def check_exits(network: CascadeNetwork, paths: Sequence[Path], images: Tensor, target: Target) -> list[Checked]:
    """Run the files one after the other in ONNX Runtime on images (N, C, H, W), and compare each exit with the network's.

    Raises:
        InputError: a file disagrees; all are removed then.
    """
    found = Chain(paths, target).run(images.numpy())
    wanted = [torch.cat(exits).numpy() for exits in zip(*map(network.eval(), torch.split(images, BATCH)), strict=True)]
    checked = []
    for path, logits, own in zip(paths, found.swapaxes(0, 1), wanted, strict=True):
        differing = float(np.abs(logits - own).max())
        if not differing <= CLOSE * max(1.0, float(np.abs(own).max())):  # which NaN is not
            for one in paths:
                one.unlink()
            raise InputError(
                f"{path.name} gives other scores than the cascade, by {differing:.2g}, and was removed; report this network"
            )
        checked.append(Checked(differing, float((logits.argmax(1) == own.argmax(1)).mean()), len(images)))
    return checked


def export_cascade(
    network: CascadeNetwork, target: Target, prices: LatencyTable | None, images: Tensor, out: Path, seed: int
) -> dict[str, Any]:
    """Write, check on `images` (N, C, H, W) and time the files of all exits in the folder `out`.

    Returns:
        What `nas export` says of a network, `path` being the folder, and times those until the last exit; and `exits`, a row for each.

    Raises:
        InputError: as `export_exits` and `check_exits`.
    """
    arch = network.arch
    _check_free(out, len(network.parts))
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch_dir()) as folder:
        written = export_exits(network, target.batch, Path(folder))
        checked = check_exits(network, written, images, target)
        paths = publish(written, out)  # in place of files from before only if these are right
    times = _until_ms(arch, paths, target, prices, seed)
    predicted = [None] * len(paths) if prices is None else until_ms(arch, prices).tolist()
    exits = [
        {**asdict(one), "path": str(path), "measured_ms": ms, "predicted_ms": told}
        for one, path, ms, told in zip(checked, paths, times, predicted, strict=True)
    ]
    return {
        "path": str(out),
        "max_abs_diff": max(one.max_abs_diff for one in checked),
        "top1_agreement": min(one.top1_agreement for one in checked),
        "images": len(images),
        "measured_ms": times[-1],
        "predicted_ms": predicted[-1],
        "peak_mb": peak_mb([arch], target)[0],
        "weights_mb": weights_mb(arch),
        "exits": exits,
    }


def _until_ms(
    arch: Cascade, paths: Sequence[Path], target: Target, prices: LatencyTable | None, seed: int
) -> list[float]:
    """Milliseconds of the files as far as each exit, in one interleaved run, at the clock of `prices` if there are any."""
    chains = {path.name: Chain(paths[: number + 1], target) for number, path in enumerate(paths)}
    reference, statistic, known = (
        (arch.stages[0], None, None) if prices is None else (prices.reference, prices.statistic, prices.reference_ms)
    )
    visits = time_opened(chains, reference, target, rounds=ROUNDS, seed=seed, floor=known)
    timings = settled(visits, ROUNDS, statistic, known)
    return [timings[path.name].ms for path in paths]
