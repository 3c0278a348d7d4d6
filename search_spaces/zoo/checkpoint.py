"""Reading a file of weights without running anything in it, and finding the weights among what training code keeps."""

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["SUFFIXES", "arch_in", "read", "unwrapped"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module")
"""Under which names training code keeps weights; the mean of them comes first."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Of DDP and averaged models, of compiled models, and of Lightning's."""
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
        except Exception as error:  # torch raises a dozen unrelated types for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} is not a whole checkpoint ({reason}); get it again") from error


def arch_in(path: Path) -> Arch | None:
    """The network that a safetensors file of ours says it holds; None for other files.

    Raises:
        InputError: this version does not know such a network.
    """
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("arch", "")
    try:
        ours = isinstance(value := json.loads(text), dict) and value.get("kind") in ("arch", "cascade")
    except json.JSONDecodeError:  # others may say something of an architecture too
        return None
    return Arch.from_json(text) if ours else None


def unwrapped(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint: of several the mean of the weights (EMA), without the prefixes that wrappers add.

    Raises:
        InputError: there is none, or not of tensors alone.
    """
    held = _innermost(checkpoint)
    if held is None:
        raise InputError(f"there is no state dict in a {type(checkpoint).__name__}; give a mapping of names to tensors")
    state = {name: value for name, value in held.items() if name != AVERAGES}
    while (prefix := _prefix(state)) is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__name__}, no tensor; give the state dict alone")
    return state


def _innermost(held: Any) -> Mapping[str, Any] | None:
    """The mapping with tensors in it, or in the first of its wrappers that leads to one."""
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        return None
    found = next((inner for name in WRAPPERS if (inner := _innermost(held.get(name))) is not None), None)
    if found is not None:
        return found
    return held if any(isinstance(value, Tensor) for value in held.values()) else None


def _prefix(state: Mapping[str, Any]) -> str | None:
    """The wrapper's prefix that all names have."""
    return next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)
