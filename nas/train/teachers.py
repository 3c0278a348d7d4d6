"""Teachers by name: a retrain run, or a timm model with its pretrained weights or those of a file."""

from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from nas.data import Data
from nas.train.retrain import Teacher, load_network
from search_spaces.errors import InputError
from search_spaces.resize import resized

__all__ = ["Adapted", "teacher_named"]

TIMM = "timm:"
SUGGESTED = 3  # names of timm models that an error message suggests
REASON = 200  # characters of a library's own message that an error repeats
SAFETENSORS_ONLY = {"hf_hub_filename": "model.safetensors", "custom_load": False, "url": None}
"""Makes timm take weights from the hub as safetensors or not at all; without it, timm would turn to a pickle."""


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
    """The teacher that is a retrain run's folder, `timm:NAME`, or `timm:NAME@FILE` with weights in safetensors.

    `weight` is its share of the loss; None leaves that and the temperature as they are in `Teacher`.

    Raises:
        InputError: no such run, model or file, weights that cannot be had, or other classes than those of `data`.
    """
    network, classes = _timm(name.removeprefix(TIMM), data) if name.startswith(TIMM) else _run(Path(name), data)
    return Teacher(
        network,
        classes,
        Teacher.weight if weight is None else weight,
        Teacher.temperature if temperature is None else temperature,
    )


def _run(path: Path, data: Data) -> tuple[nn.Module, int]:
    """The network of a retrain run, and how many classes it tells apart."""
    network, arch, _ = load_network(path)
    size = (arch.image_size, arch.image_size)
    return Adapted(network, size, torch.tensor(data.mean), torch.tensor(data.std), data).eval(), arch.classes


def _timm(name: str, data: Data) -> tuple[nn.Module, int]:
    """A timm model that sees the images of `data` as its own, and how many classes it tells apart."""
    model, at, file = name.partition("@")
    with torch.random.fork_rng(devices=[]):  # timm draws weights before it loads others
        network = _from_file(model, Path(file), data) if at else _pretrained(model, data)
    wanted: Any = network.default_cfg
    size = (wanted["input_size"][1], wanted["input_size"][2])
    adapted = Adapted(network, size, torch.tensor(wanted["mean"]), torch.tensor(wanted["std"]), data)
    return adapted.eval(), data.classes


def _pretrained(name: str, data: Data) -> nn.Module:
    """The timm model with the weights that timm publishes, which are fetched into its cache."""
    import timm

    _check_known(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise InputError(
            f"timm publishes no weights of {TIMM}{name} as safetensors; give some as a file: {TIMM}{name}@FILE.safetensors"
        )
    if config.num_classes != data.classes:  # before anything is fetched
        raise InputError(
            f"{TIMM}{name} tells {config.num_classes} classes apart, {data.name} has {data.classes}; give weights that were "
            f"trained on {data.name}: {TIMM}{name}@FILE.safetensors"
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=SAFETENSORS_ONLY)
    except Exception as error:  # the hub's client raises a dozen unrelated types for a missing network or file
        reason = shorten(str(error) or type(error).__name__, REASON)
        raise InputError(
            f"the pretrained weights of {TIMM}{name} cannot be had ({reason}); connect to the internet, or give them as "
            f"a file: {TIMM}{name}@FILE.safetensors"
        ) from error
    return network


def _from_file(name: str, path: Path, data: Data) -> nn.Module:
    """The timm model with the classes of `data` and the weights in a safetensors file."""
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_known(name)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the weights of {name} as {TIMM}{name}@FILE.safetensors")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); write the model's state_dict with "
            "safetensors.torch.save_file"
        ) from error
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=data.classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1], REASON)
        raise InputError(
            f"{path} does not fit {name} with the {data.classes} classes of {data.name} ({reason}); give weights of that "
            f"model that were trained on {data.name}"
        ) from error
    return network


def _check_known(name: str) -> None:
    """Refuse a name, or a tag after a dot, that timm does not know; nothing else is looked up, on the hub or on disk."""
    import timm

    known = [*timm.list_models(), *timm.list_models(include_tags=True)]
    if name not in known:
        close = get_close_matches(name, known, SUGGESTED)
        hint = f"is it {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise InputError(f"timm knows no model {name!r}; {hint}")
