"""One file a family of spaces; a new space is one line in `SPACES`."""

from collections.abc import Callable

from search_spaces.space import Space
from search_spaces.spaces.hybrid_sizes import hybrid, hybrid_digits
from search_spaces.spaces.mobile_former import mobile_former
from search_spaces.spaces.mobilevit import mobilevit
from search_spaces.spaces.vit_sizes import vit, vit_digits

__all__ = ["SPACES"]

SPACES: dict[str, Callable[..., Space]] = {
    "hybrid": hybrid,
    "hybrid_digits": hybrid_digits,
    "vit": vit,
    "vit_digits": vit_digits,
    "mobile_former": mobile_former,
    "mobilevit": mobilevit,
}
