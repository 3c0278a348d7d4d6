"""Weights under timm's names of a ViT, as those of a network of ours."""

from collections.abc import Mapping

from torch import Tensor, nn

from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.zoo.released import Naming, check, fitted

__all__ = ["refused", "taken"]


def taken(model: nn.Module, arch: Arch, naming: Naming, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `arch` that stand in `state`, all of `model`'s, under the names of `naming`.

    Raises:
        InputError: there are others, or they do not fit.
    """
    fault = check(arch, naming, (), state)
    if fault is not None:
        raise refused(model, f"weights that its parts do not name ({fault})")
    network = arch.build()
    network.load_state_dict({**network.state_dict(), **fitted(arch, naming, state)})
    return dict(network.state_dict())


def refused(model: nn.Module, what: str) -> InputError:
    """The error that says what of a model no Arch describes."""
    return InputError(f"this {type(model).__name__} has {what}, which no Arch describes")
