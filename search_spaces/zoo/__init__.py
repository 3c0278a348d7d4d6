"""Published networks as Archs, one file a family."""

from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.zoo import efficientformer, efficientformerv2, sret, vit

__all__ = ["arch", "names"]

ARCHS: dict[str, Arch] = {**efficientformer.ARCHS, **efficientformerv2.ARCHS, **sret.ARCHS, **vit.ARCHS}


def names() -> tuple[str, ...]:
    """All names that `arch` knows."""
    return tuple(ARCHS)


def arch(name: str) -> Arch:
    """The published network `name`.

    Raises:
        InputError: there is no such name.
    """
    if name not in ARCHS:
        raise InputError(f"no network called {name!r}; known: {', '.join(ARCHS)}")
    return ARCHS[name]
