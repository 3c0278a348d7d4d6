"""What a user may mean by a network: one that ships, a zoo name, a model of timm or Hugging Face, a checkpoint, an architecture file, or a run that holds one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import from_module, seeing
from nas.data import Data, check_channels
from nas.data import load as load_data
from nas.evaluate import calibration_batches
from nas.pretrained import HF, TIMM, hf_model, normalisation, timm_model
from nas.progress import say
from nas.runs import Run, read_arch
from nas.shipped import NAMES, shipped_network
from nas.train.retrain import fresh_network, load_network
from nas.train.supernet import load_supernet
from search_spaces import zoo
from search_spaces.arch import Arch, Network
from search_spaces.blocks import Reuse
from search_spaces.cascade import Cascade
from search_spaces.errors import InputError
from search_spaces.variants import check_sides, extract_variant
from search_spaces.zoo import with_new_head
from search_spaces.zoo.checkpoint import SUFFIXES, arch_in
from search_spaces.zoo.released import Normalisation

__all__ = ["Named", "network_named", "renormalised"]

RANDOM_IMAGES, DATA_IMAGES = 32, 1000  # that an exported file is checked on
HOLDING = ("cascade", "prune")  # kinds of runs that hold a network, beside retrain's


@dataclass(frozen=True)
class Named:
    """A network that the user named."""

    arch: Arch
    network: Network | None = None  # None where there are no weights
    normalisation: Normalisation | None = (
        None  # of the images it was trained on, where they are not a data set's of ours
    )
    supernet: Path | None = None  # the run whose shared weights it may start from
    data: str | None = None  # the data set that its own weights were trained on, where that is known

    @property
    def trained_on(self) -> str | None:
        """The data set that its weights, or its supernet's, were trained on; None where that is not known."""
        if self.supernet is None:
            return self.data
        name: str = Run.open(self.supernet).config["data"]
        return name

    def seen(self, images: Tensor, data: Data) -> Tensor:
        """Images (N, C, H, W) that are normalised as `data` does, normalised as those that the network was trained on."""
        return renormalised(images, data, self.normalisation)

    def images_to_check(self, dataset: str | None, batch: int) -> Tensor:
        """Images (N, C, H, W) on which an exported file is compared with the network: of search-validation, or random ones, whole batches.

        Raises:
            InputError: no such data, or its images have other channels.
        """
        if dataset is None:
            return torch.cat([self.arch.example(batch, seed=index) for index in range(-(-RANDOM_IMAGES // batch))])
        data = load_data(dataset, image_size=self.arch.image_size, labels=False)
        check_channels(self.arch.channels, data)
        return self.seen(torch.cat([images for images, _ in data.loader("val", 250, limit=DATA_IMAGES)]), data)

    def at(self, image_size: int) -> "Named":
        """The same network for images of another size, what belongs to a grid interpolated.

        Raises:
            InputError: it cannot be at that size.
        """
        check_sides(self.arch, (image_size,))
        arch = self.arch.at(image_size)
        network = None if self.network is None else extract_variant(self.network, self.arch, arch)
        return replace(self, arch=arch, network=network)

    def of_classes(self, classes: int, seed: int) -> "Named":
        """The same network for another number of classes, or an encoder with a classifier; it is fresh then, drawn from the seed, and that is said."""
        if classes == self.arch.classes and not self.arch.encoder:
            return self
        if self.network is None:
            return replace(self, arch=self.arch.with_classes(classes))
        own = "is an encoder" if self.arch.encoder else f"tells {self.arch.classes} classes apart"
        say(f"the network {own}, the data has {classes} classes: its classifier starts afresh")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = with_new_head(self.network, classes)
        return replace(self, arch=network.arch, network=network)

    def seeing(self, data: Data) -> "Named":
        """The same network for images as `data` normalises them.

        Raises:
            InputError: they have other channels.
        """
        check_channels(self.arch.channels, data)
        if self.normalisation is None or self.network is None:
            return self
        network = seeing(self.network, *self.normalisation, data.mean, data.std)
        return replace(self, arch=network.arch, network=network, normalisation=None)

    def static(self) -> "Named":
        """The network that keeps of every image as many patches as stay on average, with the same weights."""
        arch = self.arch.keeping(adaptive=False)
        if self.network is None:
            return replace(self, arch=arch)
        network, weights = arch.build(), self.network.state_dict()
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
        return replace(self, arch=arch, network=network.eval())

    def start_weights(self, data: Data, seed: int) -> dict[str, Tensor] | None:
        """The weights that training starts from: its own, its supernet's, or None for fresh ones."""
        if self.network is not None:
            return dict(self.network.state_dict())
        if self.supernet is None:
            return None
        supernet, _ = load_supernet(self.supernet)
        if data.classes != supernet.space.classes:
            raise InputError(
                f"the supernet in {self.supernet} tells {supernet.space.classes} classes apart, {data.name} has "
                f"{data.classes}; train a supernet on {data.name}, or retrain the architecture file from fresh weights"
            )
        stats = supernet.recalibrate(self.arch, calibration_batches(data, seed))
        return dict(supernet.extract(self.arch, stats).state_dict())

    def with_weights(self, seed: int) -> Network:
        """The network in eval mode: with its own weights, its supernet's, or random ones, and then it says so."""
        if self.network is not None:
            return self.network
        if self.supernet is None:
            say(f"{self.arch.id} has no weights of its own; it gets random ones")
            return fresh_network(self.arch, seed).eval()
        supernet, run = load_supernet(self.supernet)
        data = load_data(run.config["data"], image_size=self.arch.image_size)
        return supernet.extract(self.arch, supernet.recalibrate(self.arch, calibration_batches(data, seed)))


def renormalised(images: Tensor, data: Data, wanted: Normalisation | None) -> Tensor:
    """Images (N, C, H, W) that are normalised as `data` does, by a mean and a deviation of their own; None for those of `data`."""
    if wanted is None:
        return images
    (own_mean, own_std), (mean, std) = (
        [torch.tensor(values).view(-1, 1, 1) for values in pair] for pair in (wanted, (data.mean, data.std))
    )
    return (images * std + mean - own_mean) / own_std


def network_named(
    name: str, budget_ms: float | None = None, weights: Path | None = None, *, cascades: bool = False
) -> Named:
    """The network of a name that ships, a zoo name, `timm:NAME`, `hf:NAME`, a checkpoint, an architecture file, a run that holds one, or a search run and one of its budgets.

    Args:
        name: what the user gave; `timm:NAME@FILE` takes the weights from a safetensors file, `hf:FOLDER` all from a folder.
        budget_ms: which winner of a search run.
        weights: a checkpoint of the zoo's network `name`.
        cascades: whether a network of several exits will do.

    Raises:
        InputError: none of these, a search run with several budgets of which `budget_ms` is not one, a budget where there is no search run,
            weights that do not fit, or a cascade where one exit is wanted.
    """
    found = _named(name, budget_ms, weights)
    if budget_ms is not None and found.supernet is None:
        raise InputError(f"--budget-ms chooses a winner of a search run, and {name} is none; leave it out")
    if not isinstance(found.arch, Cascade) and any(isinstance(spec, Reuse) for spec in found.arch.blocks):
        raise InputError(
            f"{name} is a stage that reuses what the one before it knows, and runs in its cascade alone; give that"
        )
    if isinstance(found.arch, Cascade) and found.arch.told:
        raise InputError(f"{name} is the beginning of a cascade, as tables time it; give the whole cascade")
    if isinstance(found.arch, Cascade) and not cascades:
        raise InputError(
            f"{name} is a cascade, which has several exits, and this command takes networks of one; those for cascades are "
            "nas cascade train, calibrate, run, bench and export, nas describe, evaluate, export and profile"
        )
    return found


def _named(name: str, budget_ms: float | None, weights: Path | None) -> Named:
    if weights is not None:
        if name not in zoo.names():
            raise InputError(
                f"--weights are of a network of the zoo, and {name} is none; give the checkpoint's path alone"
            )
        return _from_file(weights, name)
    if name in zoo.names():
        return Named(zoo.arch(name))
    if name in NAMES:
        network = shipped_network(name)
        return Named(network.arch, network, data=NAMES[name])
    if name.startswith((TIMM, HF)):
        return _foreign(name)
    path = Path(name)
    if path.suffix in SUFFIXES and not path.is_dir():
        return _from_file(path)
    if path.is_file():
        return Named(read_arch(path))
    if not path.is_dir():
        raise InputError(
            f"{name} is no zoo name, timm:NAME, hf:NAME, checkpoint, architecture file or run folder; with weights there ship "
            f"{', '.join(NAMES)}; zoo names: {', '.join(zoo.names())}"
        )
    run = Run.open(path)
    if run.config["kind"] == "search":
        return _winner(run, budget_ms)
    kind = run.config["kind"]
    found, arch, _ = load_network(path, kind if kind in HOLDING else "retrain")
    return Named(arch, found, data=run.config.get("data"))


def _from_file(path: Path, name: str | None = None) -> Named:
    """The network of a checkpoint; a file of ours was trained on images as a data set normalises them."""
    network = zoo.from_checkpoint(path, name)
    released = arch_in(path) is None
    return Named(network.arch, network, zoo.normalisation(network.arch) if released else None)


def _foreign(name: str) -> Named:
    """A model of another library."""
    kind, _, model = name.partition(":")
    found = timm_model(model) if kind == "timm" else hf_model(model)
    try:
        arch, weights = from_module(found)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    network = arch.build()
    network.load_state_dict(weights)
    return Named(arch, network.eval(), normalisation=normalisation(found))


def _winner(run: Run, budget_ms: float | None) -> Named:
    if run.summary is None:
        raise InputError(f"the search in {run.path} is unfinished; go on with --resume")
    if budget_ms is not None and not 0 < budget_ms < float("inf"):
        raise InputError(f"--budget-ms must be positive and finite, got {budget_ms:g}")
    results: list[dict[str, Any]] = run.summary["results"]
    known = ", ".join(f"{result['budget_ms']:.6g}" for result in results)
    chosen = [result for result in results if budget_ms is None or abs(result["budget_ms"] / budget_ms - 1) < 1e-3]
    if len(chosen) != 1:
        raise InputError(
            f"{run.path} has winners for {known} ms; choose one with --budget-ms, or where a command has no such option give its "
            "file in that folder"
        )
    return Named(read_arch(run.path / chosen[0]["arch"]), supernet=run.path / run.config["supernet"])
