"""The hybrid space: its size, its partition rule, and which weights its networks share."""

import numpy as np
import pytest
import torch

from search_spaces import SPACES, Arch, Supernet
from search_spaces.blocks import MB3D
from search_spaces.spaces.hybrid import Hybrid, Shape, Stage


@pytest.fixture
def tiny() -> Hybrid:
    stages = (Stage((4, 8), (1, 2)), Stage((8, 12), (1, 2)))
    return Hybrid("tiny", 16, stages, (0, 1, 2), (1, 2), MB3D(2, 4, 8), classes=3)


def test_size_counts_different_networks(tiny: Hybrid) -> None:
    every = np.stack(np.meshgrid(*(range(len(c.values)) for c in tiny.choices), indexing="ij"), -1)
    archs = {tiny.decode(code) for code in every.reshape(-1, len(tiny.choices))}
    assert tiny.size == len(archs)


def test_partition_is_cut_to_the_depth(tiny: Hybrid) -> None:
    code = tiny.encode(tiny.largest)
    code[[c.name for c in tiny.choices].index("depth1")] = 0
    arch = tiny.decode(code)
    assert sum(isinstance(spec, MB3D) for spec in arch.blocks) == 1


def test_digits_space_is_the_one_described() -> None:
    space = SPACES["hybrid_digits"](classes=7)
    largest = space.largest
    assert largest.classes == 7
    grids = {(state.height, state.width) for state in largest.states[1:] if hasattr(state, "height")}
    assert grids == {(16, 16), (8, 8)}
    block = next(spec for spec in largest.blocks if isinstance(spec, MB3D))
    assert (block.heads, block.key_dim, block.value_dim) == (4, 16, 32)


def test_trailing_blocks_share_weights_from_the_end(tiny: Hybrid) -> None:
    one = tiny.arch(Shape((8, 12), ((1,), (1,)), (2,)))
    two = tiny.arch(Shape((8, 12), ((1,), ()), (1, 2)))
    assert tiny.slots(one)[-2] == tiny.slots(two)[-2] == "stage1.mb3d.0"
    assert tiny.slots(two)[-3] == "stage1.mb3d.1"


def test_narrow_networks_take_leading_channels(tiny: Hybrid) -> None:
    supernet = Supernet(tiny)
    wide = supernet.weights(tiny.largest)["blocks.0.conv2.weight"]
    narrow = supernet.weights(tiny.smallest)["blocks.0.conv2.weight"]
    assert narrow.shape == (4, 2, 3, 3)
    assert torch.equal(narrow, wide[:4, :2])
    assert narrow.data_ptr() == wide.data_ptr()


def test_networks_between_the_choices_run_too(tiny: Hybrid) -> None:
    """Baselines scale widths freely."""
    arch = tiny.arch(Shape((6, 10), ((1.5,), (1,)), (1,)))
    assert not tiny.contains(arch)
    assert Supernet(tiny)(arch.example(2), arch).shape == (2, 3)


def test_a_network_larger_than_the_bank_is_refused(tiny: Hybrid) -> None:
    supernet = Supernet(tiny)
    wide: Arch = tiny.arch(Shape((16, 12), ((1,), ()), (1,)))
    with pytest.raises(ValueError, match="larger than the bank"):
        supernet.weights(wide)
    deep = tiny.arch(Shape((8, 12), ((1,) * 3, ()), (1,)))
    with pytest.raises(ValueError, match="needs the slot"):
        supernet.weights(deep)
    with pytest.raises(ValueError, match="at least one batch"):
        supernet.recalibrate(tiny.smallest, [])
