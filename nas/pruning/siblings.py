"""The next smaller model of a family of timm's."""

from nas.networks import Named, network_named
from nas.pretrained import TIMM
from search_spaces.errors import InputError

__all__ = ["smaller_sibling", "smaller_sibling_name"]

SIZES = ("giant", "huge", "large", "base", "medium", "small", "tiny")  # words of names, the largest first


def smaller_sibling_name(name: str) -> str | None:
    """The timm model that is called like `name` but for a smaller size, with its tag where there is one; None where there is none."""
    import timm

    base, _, tag = name.partition(".")
    words = base.split("_")
    size = next((word for word in words if word in SIZES), None)
    if size is None:
        return None
    models, tagged = timm.list_models(), timm.list_models(include_tags=True)
    for smaller in SIZES[SIZES.index(size) + 1 :]:
        other = "_".join(smaller if word == size else word for word in words)
        if tag and f"{other}.{tag}" in tagged:
            return f"{other}.{tag}"
        if other in models:
            return other
    return None


def smaller_sibling(name: str) -> tuple[str, Named]:
    """The name and the network, with the weights that timm publishes, of the next smaller sibling of `timm:NAME`.

    Raises:
        InputError: there is none, or its weights cannot be had.
    """
    if not name.startswith(TIMM):
        raise InputError(f"{name} is no model of timm's, whose smaller siblings are published")
    if "@" in name:
        raise InputError(f"the weights of {name} are a file, and there is none of a smaller sibling")
    sibling = smaller_sibling_name(name.removeprefix(TIMM))
    if sibling is None:
        raise InputError(f"timm knows no smaller sibling of {name}")
    return f"{TIMM}{sibling}", network_named(f"{TIMM}{sibling}")
