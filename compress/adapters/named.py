"""Weights under timm's names of a ViT, as those of a network of ours."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.zoo.released import Naming, check, fitted

__all__ = ["check_parts", "layer", "refused", "taken"]

Kind = TypeVar("Kind", bound=nn.Module)


def check_parts(model: nn.Module, package: str) -> None:
    """Refuse parts that neither torch nor the library defines, such as adapters, wrappers and quantised layers.

    Raises:
        InputError: there is one, which is named.
    """
    for name, part in model.named_modules():
        where = f"{type(part).__module__}."
        if name and not where.startswith(("torch.nn.", f"{package}.")):
            raise refused(
                model, f"{name}, a {type(part).__name__} of neither torch.nn nor {package}", "merge or unwrap it"
            )


def layer(model: nn.Module, part: nn.Module, kind: type[Kind], what: str) -> Kind:
    """The part, where it is just such a layer.

    Raises:
        InputError: it is of another type.
    """
    if type(part) is not kind:
        raise refused(model, f"a {type(part).__name__} as {what}")
    return part


def taken(model: nn.Module, arch: Arch, naming: Naming, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `arch` that stand in `state`, all of `model`'s, under the names of `naming`.

    Raises:
        InputError: there are others, or they do not fit.
    """
    fault = check(arch, naming, (), state)
    if fault is not None:
        raise refused(model, f"weights that its parts do not name ({fault})", "restore the parts as they were built")
    network = arch.build()
    network.load_state_dict({**network.state_dict(), **fitted(arch, naming, state)})
    return dict(network.state_dict())


def refused(model: nn.Module, what: str, mend: str = "take one without") -> InputError:
    """The error that says what of a model no Arch describes, and what can be done."""
    return InputError(f"this {type(model).__name__} has {what}, which no Arch describes; {mend}")
