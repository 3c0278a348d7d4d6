"""The space of MobileViTs: its size, what it contains, which weights its networks share, and its probes."""

from itertools import product

import numpy as np
import pytest
import torch

from search_spaces import SPACES, Supernet, zoo
from search_spaces.blocks import InvertedResidual, MobileViT
from search_spaces.spaces.mobilevit import MobileViTs, Part, mobilevit


def tiny() -> MobileViTs:
    return MobileViTs("tiny", (64, 32), ((4,), (4, 8), (8,), (8,), (8, 12)), (2, 3), ((8, 16),), ((1, 2),), classes=3)


def test_every_code_is_another_network() -> None:
    space = tiny()
    every = product(*(range(len(choice.values)) for choice in space.choices))
    assert space.size == 2**10 == len({space.decode(np.array(code)) for code in every})


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_the_published_ones_are_networks_of_the_space(size: str) -> None:
    space, arch = SPACES["mobilevit"](), zoo.arch(f"mobilevit_{size}")
    assert space.contains(arch) and space.decode(space.encode(arch)) == arch
    assert set(arch.rows) <= set(space.rows)
    assert not space.contains(arch.with_classes(10)) and not space.contains(arch.at(160))
    assert space.contains(arch.at(192))
    assert (space.largest == arch) == (size == "s")


def test_expansion_is_of_a_stage_and_depth_of_a_transformer() -> None:
    space = mobilevit()
    code = space.encode(space.largest)
    for name in ("expand1", "dim3", "depth4"):
        code[[choice.name for choice in space.choices].index(name)] = 0
    arch = space.decode(code)
    expands = [spec.expand for spec in arch.blocks if isinstance(spec, InvertedResidual)]
    assert expands == [4, 2, 2, 2, 4, 4, 4]
    transformers = [(spec.dim, spec.depth) for spec in arch.blocks if isinstance(spec, MobileViT)]
    assert transformers == [(144, 2), (80, 4), (240, 1)]


def test_narrower_blocks_take_leading_channels_of_every_part() -> None:
    """Of each half of the joined maps, and of each head's q, k and v."""
    space = tiny()
    torch.manual_seed(0)
    supernet = Supernet(space)
    parts = [Part(4, 2), Part(4, 2), Part(8, 2), Part(8, 2), Part(8, 2, dim=8, depth=1)]
    arch = space.arch(parts, 64)
    place = next(place for place, spec in enumerate(arch.blocks) if isinstance(spec, MobileViT))
    own, slot = supernet.weights(arch), "stage4/mobilevit1/"
    fusion = supernet.bank[slot + "fusion/conv/weight"]
    assert fusion.shape[:2] == (12, 24)
    assert torch.equal(own[f"blocks.{place}.fusion.conv.weight"], fusion[:8, [*range(8), *range(12, 20)]])
    qkv = supernet.bank[slot + "layers/0/token_mixer/qkv/weight"]
    rows = [12 * head + 4 * part + row for head in range(4) for part in range(3) for row in range(2)]
    assert torch.equal(own[f"blocks.{place}.layers.0.token_mixer.qkv.weight"], qkv[rows, :8])
    proj = supernet.bank[slot + "layers/0/token_mixer/proj/weight"]
    columns = [4 * head + column for head in range(4) for column in range(2)]
    assert torch.equal(own[f"blocks.{place}.layers.0.token_mixer.proj.weight"], proj[:8, columns])


def test_a_network_of_its_own_is_absorbed_and_found_again() -> None:
    space = tiny()
    supernet = Supernet(space)
    network = space.largest.build().eval()
    supernet.absorb(space.largest, network.state_dict())
    own = network.state_dict()
    for name, weight in supernet.weights(space.largest).items():
        assert torch.equal(weight, own[name]), name
    small = supernet.weights(space.smallest)
    narrow = {name: weight.clone() for name, weight in small.items()}
    supernet.absorb(space.smallest, {name: weight + 1 for name, weight in narrow.items()})
    for name, weight in supernet.weights(space.smallest).items():
        assert torch.equal(weight, narrow[name] + 1), name


def test_no_probe_is_needless() -> None:
    """Each adds to what the others tell."""
    space = mobilevit()
    place, probes = {row: column for column, row in enumerate(space.rows)}, space.probes()
    counts = np.zeros((len(probes), len(place)))
    for i, arch in enumerate(probes):
        for row in arch.rows:
            counts[i, place[row]] += 1
    assert len(probes) == len(set(probes)) == np.linalg.matrix_rank(counts) == 190


def test_choices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4 widths, 1 dims and 1 depths"):
        MobileViTs("x", (64,), ((4,),) * 4, (2,), ((8,),), ((1,),), classes=3)
    with pytest.raises(ValueError, match="got 5 widths, 1 dims and 2 depths"):
        MobileViTs("x", (64,), ((4,),) * 5, (2,), ((8,),), ((1,), (1,)), classes=3)
