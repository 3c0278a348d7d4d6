"""A ViT that tells the toy's classes apart, priced by its MACs, so that pruning is told from timing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from compress import curve_of
from compress.token_losses import Curve
from nas.cost import macs
from nas.data import DATASETS, Data
from nas.export import Checked
from nas.pruning.files import Delivered, Files, FileTimes
from nas.runs import save_weights
from nas.target import Target
from nas.train.loop import Recipe, fit
from nas.train.retrain import fresh_network, supervised
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, Row
from search_spaces.states import State
from tests.nas.toy import toy

BLOCK = MB3D(2, 16, 16, 2, residual="plain", bias=False)
ARCH = Arch(32, 3, (Patch(32, 8), ClassToken(), Position(), *[BLOCK] * 3, Head(4, pool="token")))
ENCODER = replace(ARCH, blocks=(*ARCH.blocks[:-1], Head(0, pool="token")))
TARGET = Target("cpu", "ort", "fp32", 1, 1)
PARTS = ("heads", "queries", "neurons", "blocks")  # few frames: which are chosen is told in tests/compress
HOW: dict[str, Any] = {"target": TARGET.name, "images": 64, "parts": PARTS}
IMAGES = 512  # of each split
FIXED, THRESHOLDS = 0.05, 0.02  # ms of any network, and of one with thresholds


@dataclass(frozen=True)
class Prices:
    """A latency table by which a million MACs take a millisecond."""

    target: Target = TARGET
    id: str = "prices"
    path: Path = Path("prices")
    why: str = ""  # it is not to be relied on
    statistic: str = "p05"

    @property
    def verdict(self) -> dict[str, Any]:
        return {"good": not self.why, "why": self.why}

    def check_machine(self, foreign: bool) -> None: ...

    def unpriced(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        return ()

    def predict(self, arch: Arch) -> Any:
        assert arch == arch.keeping(adaptive=False), "there are no rows of thresholds"
        return SimpleNamespace(ms=FIXED + macs(arch) / 1e6)

    def block_ms(self, spec: BlockSpec, state: State) -> float:
        return spec.macs(state) / 1e6

    def curve(self, arch: Arch) -> Curve:
        assert arch == arch.keeping(adaptive=False), "there are no rows of thresholds"
        scaled = curve_of(arch, self.block_ms, range(1, 17))
        return lambda counts: scaled(counts) + FIXED

    def timed(self, arch: Arch) -> Any:
        ms = self.predict(arch.keeping(adaptive=False)).ms
        ms += THRESHOLDS if arch != arch.keeping(adaptive=False) else 0.0
        return SimpleNamespace(ms=ms, median=ms, mean=ms, p90=ms, p95=ms)


def scattered(timed: Any, ratio: float) -> Any:
    """Timing of which the median is so much more than the statistic."""

    def found(self: Prices, arch: Arch) -> Any:
        own = vars(timed(self, arch))
        return SimpleNamespace(**{**own, "median": ratio * own["ms"]})

    return found


def delivered(files: Files, arch: Arch, weights: dict[str, Tensor], times: FileTimes | None = None) -> Delivered:
    """In place of exporting and timing, which tests/nas/test_pruning.py does."""
    return Delivered(files.out / "model.onnx", Checked(0.0, 1.0, 1), None, None)


@contextmanager
def priced(prices: Prices = Prices(), data: Data | None = None, beside: Sequence[Prices] = ()) -> Iterator[None]:
    """Meanwhile `nas prune` takes these prices for measured, those `beside` on further targets, and `toy` is a data set."""
    own = toy(IMAGES) if data is None else data
    fakes = {
        "nas.pruning.job.find_tables": lambda tables, targets, space: [prices, *beside],
        "nas.pruning.job.timed": lambda archs, table, seed: [table.timed(arch) for arch in archs],
        "nas.pruning.outcome.peak_mb": lambda archs, target: [1.0] * len(archs),
        "nas.pruning.files.Files.delivered": delivered,
    }
    with ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(patch(name, fake))
        stack.enter_context(patch.dict(DATASETS, {"toy": lambda path, image_size, seed: own.at(image_size or 32)}))
        yield


def trained_vit(folder: Path) -> Path:
    """A file of weights that tell the toy's classes apart."""
    network = fresh_network(ARCH, 0)
    recipe = Recipe(epochs=5, batch_size=32, lr=3e-3, augment=False)
    fit(network, supervised(recipe, None), toy(2048), recipe, folder / "c.pt", "dense")
    save_weights(folder / "vit.safetensors", network.state_dict(), ARCH)
    return folder / "vit.safetensors"


def with_head(weights: dict[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of `arch`, all that are alike taken from a network of other classes."""
    torch.manual_seed(1)
    own = arch.build().state_dict()
    return {name: weights[name] if name in weights and weights[name].shape == w.shape else w for name, w in own.items()}
