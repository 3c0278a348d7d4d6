"""Reading a file of weights without running anything in it, and finding the weights among what training code keeps."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["SUFFIXES", "arch_in", "read", "unwrapped"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model",
    "module",
)  # the mean of the weights comes first
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP and averaged models, compiled models, Lightning
AVERAGES = "n_averaged"  # a counter of torch's AveragedModel


def read(path: Path) -> Any:
    """What a .safetensors or .pth file holds: tensors, and what plain Python types there are beside them.

    Raises:
        InputError: no such file, a damaged one, or one that would have to run code to be read.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of a checkpoint ({', '.join(SUFFIXES)})")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no checkpoint: its name should end in one of {', '.join(SUFFIXES)}")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); get it again") from error


def _pickled(path: Path) -> Any:
    # Training scripts keep their command line's values, which are data; all other classes are refused.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            why = str(error).replace("\n", " ").partition("GLOBAL ")[2].split()[:1]
            about = f"it names {why[0].strip('`,.')}" if why else "it is damaged, or no checkpoint"
            mend = "get it again, or save the model's state_dict alone, best as .safetensors"
            raise InputError(f"{path} holds more than weights, or is not whole ({about}); {mend}") from error
        except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, LookupError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} is not a whole checkpoint ({reason}); get it again") from error


def arch_in(path: Path) -> Arch | None:
    """The network that a safetensors file of ours says it holds; None for other files."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    return Arch.from_json(about["arch"]) if "arch" in about else None


def unwrapped(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint: of several the mean of the weights (EMA), without the prefixes that wrappers add.

    Raises:
        InputError: there is none.
    """
    held = checkpoint
    while isinstance(held, Mapping):
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            break
        held = inner
    if not isinstance(held, Mapping) or not held or not all(isinstance(name, str) for name in held):
        raise InputError(f"there is no state dict in a {type(checkpoint).__name__}; give a mapping of names to tensors")
    state = {name: value for name, value in held.items() if name != AVERAGES}
    while (
        prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)
    ) is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            known = ", ".join(list(held)[:5])
            raise InputError(
                f"{name} is a {type(value).__name__}, no tensor (entries: {known}); give the state dict alone"
            )
    return state
