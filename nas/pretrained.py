"""Models of timm and Hugging Face by name, with the weights that are published or those of a file; nothing is unpickled."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.progress import say
from search_spaces.errors import InputError
from search_spaces.zoo.released import Normalisation

if TYPE_CHECKING:
    from nas.data import Data

__all__ = ["HF", "TIMM", "hf_model", "normalisation", "timm_model"]

TIMM, HF = "timm:", "hf:"
SUGGESTED = 3  # names of timm models that an error message suggests
CLASSIFIER = {"classifier.weight", "classifier.bias"}  # of a ViTForImageClassification
REASON = 200  # characters of a library's own message that an error repeats
SAFETENSORS_ONLY = {"hf_hub_filename": "model.safetensors", "custom_load": False, "url": None}
"""Makes timm take weights from the hub as safetensors or not at all; without it, timm would turn to a pickle."""


def timm_model(name: str, data: Data | None = None) -> nn.Module:
    """The timm model NAME with its published weights, or NAME@FILE with those of a safetensors file, in eval mode.

    With `data`, a model that tells its classes apart; without, any.

    Raises:
        InputError: no such model or file, weights that cannot be had, or other classes than those of `data`.
    """
    model, at, file = name.partition("@")
    with torch.random.fork_rng(devices=[]):  # timm draws weights before it loads others
        return (_from_file(model, Path(file), data) if at else _published(model, data)).eval()


def hf_model(name: str) -> nn.Module:
    """Hugging Face's model NAME of its hub, or of a folder, in float32 and eval mode; an encoder where its weights have no classifier.

    Raises:
        InputError: the extra is not installed, the model cannot be had as safetensors, or more than the classifier is missing.
    """
    try:
        from transformers import ViTForImageClassification
    except ModuleNotFoundError as error:
        raise InputError(f'{HF}{name} needs transformers, which is not installed; pip install "vit-nas[hf]"') from error
    try:
        loaded: Any = ViTForImageClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the hub's client raises a dozen unrelated types for a missing network or file
        raise InputError(
            f"{HF}{name} cannot be had as a ViTForImageClassification in safetensors ({_reason(error)}); connect to the internet, "
            f"or give a folder: {HF}FOLDER"
        ) from error
    network, missing = loaded[0], set(loaded[1]["missing_keys"])  # which have random weights now
    if missing - CLASSIFIER:
        raise InputError(
            f"{HF}{name} lacks {len(missing - CLASSIFIER)} of the weights of a ViTForImageClassification, such as "
            f"{min(missing - CLASSIFIER)}; give a network that has them"
        )
    if missing:
        say(f"{HF}{name} has no classifier: it is taken as an encoder, whose features are what it gives")
        network.classifier, network.config.num_labels = nn.Identity(), 0
    found: nn.Module = network.eval()
    return found


def normalisation(model: nn.Module) -> Normalisation:
    """By which mean and deviation the images that a model was trained on were normalised, as its library records it."""
    wanted: Any = getattr(model, "default_cfg", None)
    if wanted is not None:
        return tuple(wanted["mean"]), tuple(wanted["std"])
    from transformers import ViTImageProcessor

    config: Any = model.config
    try:
        processor = ViTImageProcessor.from_pretrained(str(config._name_or_path))
    except OSError:  # none was saved beside the weights
        processor = ViTImageProcessor()
    return tuple(processor.image_mean), tuple(processor.image_std)


def _reason(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, REASON)


def _published(name: str, data: Data | None) -> nn.Module:
    """The timm model with the weights that timm publishes, which are fetched into its cache."""
    import timm

    _check_known(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise InputError(
            f"timm publishes no weights of {TIMM}{name} as safetensors; give some as a file: {TIMM}{name}@FILE.safetensors"
        )
    if data is not None and config.num_classes != data.classes:  # before anything is fetched
        raise InputError(
            f"{TIMM}{name} tells {config.num_classes} classes apart, {data.name} has {data.classes}; give weights that were "
            f"trained on {data.name}: {TIMM}{name}@FILE.safetensors"
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=SAFETENSORS_ONLY)
    except Exception as error:  # the hub's client raises a dozen unrelated types for a missing network or file
        raise InputError(
            f"the pretrained weights of {TIMM}{name} cannot be had ({_reason(error)}); connect to the internet, or give them as "
            f"a file: {TIMM}{name}@FILE.safetensors"
        ) from error
    return network


def _from_file(name: str, path: Path, data: Data | None) -> nn.Module:
    """The timm model with the weights in a safetensors file, and with the classes of `data` or of the weights."""
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
    classes = _classes_of(weights, timm.get_pretrained_cfg(name)) if data is None else data.classes
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1], REASON)
        if data is None:
            raise InputError(f"{path} does not fit {name} ({reason}); give weights of that model") from error
        raise InputError(
            f"{path} does not fit {name} with the {data.classes} classes of {data.name} ({reason}); give weights of that "
            f"model that were trained on {data.name}"
        ) from error
    return network


def _classes_of(weights: dict[str, Tensor], config: Any) -> int:
    """How many classes weights tell apart, by the layer that timm calls the classifier; 0 where they have none."""
    named = "head" if config is None else config.classifier
    layer = named if isinstance(named, str) else named[0]
    classifier = weights.get(f"{layer}.weight")
    return 0 if classifier is None else len(classifier)


def _check_known(name: str) -> None:
    """Refuse a name, or a tag after a dot, that timm does not know; nothing else is looked up, on the hub or on disk."""
    import timm

    known = [*timm.list_models(), *timm.list_models(include_tags=True)]
    if name not in known:
        close = get_close_matches(name, known, SUGGESTED)
        hint = f"is it {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise InputError(f"timm knows no model {name!r}; {hint}")
