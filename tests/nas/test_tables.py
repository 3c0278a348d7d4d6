"""Which space's table prices a network."""

import pytest

from nas.tables import space_of
from search_spaces import InputError, zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB4D, Head, Stem


@pytest.mark.parametrize(
    ("name", "space"),
    [("efficientformer_l3", "hybrid"), ("deit_small_patch16_224", "vit"), ("asvit_deit_base", "vit")],
)
def test_published_networks_have_prices(name: str, space: str) -> None:
    """With thresholds too, whatever they have come to keep on average."""
    arch = zoo.arch(name)
    assert space_of(arch).name == space
    if arch.locations:
        assert space_of(arch.keeping([150, 99, 20])).name == space


def test_others_have_none() -> None:
    with pytest.raises(InputError, match="is in none of hybrid, hybrid_digits, vit, vit_digits"):
        space_of(Arch(32, 3, (Stem(8), MB4D(), Head(2))))
