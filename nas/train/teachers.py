"""Teachers by name: whatever names a network with weights, and a timm model of any kind with its pretrained weights or those of a file."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data import Data
from nas.networks import network_named
from nas.pretrained import TIMM, timm_model
from nas.runs import CONFIG, Run
from nas.train.retrain import Teacher
from search_spaces.arch import Network
from search_spaces.errors import InputError
from search_spaces.resize import resized

__all__ = ["Adapted", "feature_teacher", "teacher_named"]


class Adapted(nn.Module):
    """A network that gets the images of a data set in the size and the normalisation it was trained with."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, size: tuple[int, int], mean: Tensor, std: Tensor, data: Data) -> None:
        """Wrap `network`, which wants images of `size` (height, width), normalised by `mean` and `std` (3,)."""
        super().__init__()
        self.network, self.size = network, size
        own_mean, own_std = torch.tensor(data.mean), torch.tensor(data.std)
        self.register_buffer("scale", (own_std / std).view(3, 1, 1))
        self.register_buffer("offset", ((own_mean - mean) / std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the data set normalises them -> logits (B, classes)."""
        logits: Tensor = self.network(resized(images, self.size) * self.scale + self.offset)
        return logits


def teacher_named(name: str, data: Data, weight: float | None = None, temperature: float | None = None) -> Teacher:
    """The teacher that is a network with weights by any name, or `timm:NAME` or `timm:NAME@FILE` of any kind, whose file is safetensors.

    `weight` is its share of the loss; None leaves that and the temperature as they are in `Teacher`.

    Raises:
        InputError: no such network, model or file, weights that cannot be had, or other classes than those of `data`.
    """
    network, classes = _timm(name.removeprefix(TIMM), data) if name.startswith(TIMM) else _own(name, data)
    return Teacher(
        network,
        classes,
        Teacher.weight if weight is None else weight,
        Teacher.temperature if temperature is None else temperature,
    )


def feature_teacher(name: str, data: Data) -> Teacher:
    """The encoder whose features another is to give: whatever names a network that has weights and no classifier.

    Raises:
        InputError: it names none, or one without weights or with a classifier.
    """
    network = _named(name, data)
    if not network.arch.encoder:
        raise InputError(
            f"the teacher {name} has a classifier, the network none; give the encoder whose features it is to follow"
        )
    return Teacher(_sized(network, data), network.arch.classes)


def _own(name: str, data: Data) -> tuple[nn.Module, int]:
    """A network that this project names, and how many classes it tells apart."""
    network = _named(name, data)
    if network.arch.encoder:
        raise InputError(
            f"the teacher {name} is an encoder, which tells no classes apart; give a network with a classifier"
        )
    return _sized(network, data), network.arch.classes


def _named(name: str, data: Data) -> Network:
    """A network with its weights, for images as `data` normalises them."""
    if (Path(name) / CONFIG).is_file() and Run.open(Path(name)).config["kind"] == "search":
        raise InputError(
            f"the teacher {name} is a search, whose winners have no weights yet; retrain one and name that run"
        )
    named = network_named(name)
    network = named.seeing(data).network
    if network is None:
        raise InputError(f"the teacher {name} has no weights; give a run, a checkpoint, timm:NAME or hf:NAME")
    return network


def _sized(network: Network, data: Data) -> nn.Module:
    """A network for images as `data` normalises them, which gets them in its own size."""
    size = (network.arch.image_size, network.arch.image_size)
    return Adapted(network, size, torch.tensor(data.mean), torch.tensor(data.std), data).eval()


def _timm(name: str, data: Data) -> tuple[nn.Module, int]:
    """A timm model that sees the images of `data` as its own, and how many classes it tells apart."""
    network = timm_model(name, data)
    wanted: Any = network.default_cfg
    size = (wanted["input_size"][1], wanted["input_size"][2])
    adapted = Adapted(network, size, torch.tensor(wanted["mean"]), torch.tensor(wanted["std"]), data)
    return adapted.eval(), data.classes
