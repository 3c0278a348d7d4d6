"""Networks of other libraries as Archs: one file a library, the only ones that know its insides."""

from collections.abc import Callable
from copy import deepcopy
from importlib import import_module

import torch
from torch import Tensor, nn

from compress.finite import check_finite
from search_spaces.arch import Arch, Network
from search_spaces.cascade import CascadeNetwork
from search_spaces.errors import InputError

__all__ = ["from_module"]

ADAPTERS = {"timm": "compress.adapters.timm", "transformers": "compress.adapters.huggingface"}
"""By the package that a model's class, or the nearest of those it inherits from, is defined in; imported when one comes."""

WRAPPED = ("module", "_orig_mod", "base_model")
"""Where DataParallel, torch.compile and PEFT keep the network that they wrap."""

CLOSE = (
    1e-3  # relative to the largest logit: what an option that an adapter overlooked would exceed, and rounding does not
)


def from_module(model: nn.Module) -> tuple[Arch, dict[str, Tensor]]:
    """A dense network as Arch and weights with the same logits, in float32 on the CPU: `arch.build().load_state_dict(weights)`.

    Args:
        model: a `Network` of ours, timm's `VisionTransformer` (ViT, DeiT, DeiT-III, distilled, CLIP, DINOv2, SigLIP; with no classifier
            an encoder, whose features are the logits), or Hugging Face's `ViTForImageClassification` (without labels an encoder, too).

    Raises:
        InputError: it is none of these, or has a part that no Arch describes, which is named; or its weights hold NaN or infinity, and then the tensor is.
    """
    if isinstance(model, CascadeNetwork):
        raise InputError("a cascade is several networks; give one of them")
    if any(weight.is_meta for weight in model.parameters()):
        raise InputError(f"the weights of this {type(model).__name__} are not there (device meta); load them first")
    if isinstance(model, Network):
        own = _in_float32(model).state_dict()
        check_finite(own)
        return model.arch, {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
    packages = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    known = next((package for package in packages if package in ADAPTERS), None)
    if known is None:
        inner = next((name for name in WRAPPED if isinstance(getattr(model, name, None), nn.Module)), None)
        raise InputError(
            f"{type(model).__name__} is no network of {', '.join(ADAPTERS)} or ours, whose parts are known"
            + ("" if inner is None else f"; give what it wraps, its .{inner}")
        )
    read: Callable[[nn.Module], tuple[Arch, dict[str, Tensor]]] = import_module(ADAPTERS[known]).read
    model = _in_float32(model)
    with torch.device("cpu"):  # whatever the default is
        try:
            arch, weights = read(model)
        except InputError:
            raise
        except ValueError as error:  # blocks that do not fit each other
            raise InputError(f"this {type(model).__name__} has a form that no Arch describes: {error}") from error
        check_finite(weights)
        _check(model, arch, weights)
    return arch, weights


def _in_float32(model: nn.Module) -> nn.Module:
    """The model, or a copy in float32 where its weights are in other numbers: what it is compared with is in these, and so are images."""
    known = all(weight.dtype == torch.float32 for weight in model.parameters())
    return model if known else deepcopy(model).float()


@torch.no_grad()
def _check(model: nn.Module, arch: Arch, weights: dict[str, Tensor]) -> None:
    """Compare the outputs on one image: a subclass may compute what its parts do not show."""
    network = arch.build()
    network.load_state_dict(weights)
    modes, device = [(part, part.training) for part in model.modules()], next(model.parameters()).device
    try:
        given = model.eval()(arch.example().to(device))
    finally:
        for part, mode in modes:  # some may be frozen
            part.training = mode
    given = getattr(given, "logits", given)
    if not isinstance(given, Tensor):
        raise InputError(
            f"{type(model).__name__} gives a {type(given).__name__}, not logits, so it cannot be described"
        )
    wanted, found = given.float().cpu(), network.eval()(arch.example())
    if found.shape != wanted.shape or not (found - wanted).abs().max() <= CLOSE * wanted.abs().max():
        raise InputError(
            f"{type(model).__name__} computes something else than its parts say, so it cannot be described"
        )
