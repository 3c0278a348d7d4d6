"""What networks exist: architectures, blocks, spaces, the shared-weight supernet and the published networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces import zoo as zoo
    from search_spaces.arch import Arch as Arch
    from search_spaces.blocks import BLOCKS as BLOCKS
    from search_spaces.blocks import BlockSpec as BlockSpec
    from search_spaces.cascade import Cascade as Cascade
    from search_spaces.errors import InputError as InputError
    from search_spaces.space import Space as Space
    from search_spaces.spaces import SPACES as SPACES
    from search_spaces.supernet import Supernet as Supernet

__all__ = ["BLOCKS", "SPACES", "Arch", "BlockSpec", "Cascade", "InputError", "Space", "Supernet", "zoo"]

# Loaded when first asked for, so that the command line's help does not wait for torch.
_HOMES = {
    "Arch": "search_spaces.arch",
    "BLOCKS": "search_spaces.blocks",
    "BlockSpec": "search_spaces.blocks",
    "Cascade": "search_spaces.cascade",
    "InputError": "search_spaces.errors",
    "SPACES": "search_spaces.spaces",
    "Space": "search_spaces.space",
    "Supernet": "search_spaces.supernet",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return import_module("search_spaces.zoo")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
