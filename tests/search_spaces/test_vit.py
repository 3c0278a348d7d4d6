"""The space of ViTs: its size, what it contains, and which weights its networks share."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from search_spaces import SPACES, Arch, Supernet, zoo
from search_spaces.blocks import MB3D, Head, TokenPrune
from search_spaces.regrid import token_places
from search_spaces.spaces.vit import Layer, Vit
from search_spaces.spaces.vit_sizes import vit, vit_digits
from search_spaces.zoo.vit import vit as published


def tiny(
    image_size: tuple[int, ...] = (32, 24),
    shares: tuple[float, ...] = (1, 0.5),
    locations: tuple[int, ...] = (1, 2),
    keeps: tuple[int, ...] = (10, 4),
) -> Vit:
    return Vit("tiny", image_size, 8, (8, 16), (1, 2, 3), shares, (4, 2), 4, (2,), locations, keeps, classes=3)


def randomised(space: Vit) -> Supernet:
    """A supernet no two of whose weights are equal."""
    torch.manual_seed(0)
    supernet = Supernet(space)
    with torch.no_grad():
        for weight in supernet.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return supernet


@pytest.mark.parametrize(
    "space",
    [tiny((32, 24), (1, 0.5), (2,)), tiny((32, 24), (1,)), tiny((32,), (1, 0.5), (), ())],
    ids=["one location", "one share of heads", "no location"],
)
def test_size_counts_different_networks(space: Vit) -> None:
    every = product(*(range(len(choice.values)) for choice in space.choices))
    codes = {tuple(int(value) for value in space.repair(np.array(code))) for code in every}
    assert space.size == len(codes) == len({space.decode(np.array(code)) for code in codes})


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_deit_and_as_vit_are_networks_of_the_space(size: str) -> None:
    space = SPACES["vit"]()
    deit, pruned = zoo.arch(f"deit_{size}_patch16_224"), zoo.arch(f"asvit_deit_{size}")
    assert space.contains(deit) and space.decode(space.encode(deit)) == deit
    earlier = published(deit.blocks[0].width // 64, (3, 6, 9))
    for arch in (pruned, earlier):
        assert space.contains(arch)
        static = space.decode(space.encode(arch))
        assert static == arch.keeping(adaptive=False) != arch
        assert [spec.keep for spec in static.blocks if isinstance(spec, TokenPrune)] == [137, 96, 67]
        assert set(arch.rows) <= set(space.rows), "priced with thresholds too"
    assert space.largest == zoo.arch("deit_base_patch16_224")
    assert not space.contains(deit.with_classes(10)) and not space.contains(deit.at(192))


def test_each_figure_of_a_block_is_chosen_for_it_alone() -> None:
    space = vit_digits()
    code = space.encode(space.largest)
    for name in ("heads0", "qk1", "ratio2", "keep3"):
        code[[choice.name for choice in space.choices].index(name)] = 1
    arch = space.decode(code)
    blocks = [spec for spec in arch.blocks if isinstance(spec, MB3D)]
    assert [(spec.heads, spec.key_dim, spec.ratio) for spec in blocks[:4]] == [(2, 16, 3), (4, 8, 3), (4, 16, 2), (4, 16, 3)]  # fmt: skip
    assert arch.blocks[6] == TokenPrune(48)
    assert {spec.value_dim for spec in blocks} == {16} and isinstance(arch.blocks[-1], Head)


def test_locations_keep_ever_fewer_of_the_patches_that_there_are() -> None:
    space = tiny()
    at = {choice.name: i for i, choice in enumerate(space.choices)}
    code = space.encode(space.largest)

    def kept() -> list[int]:
        return [spec.keep for spec in space.decode(code).blocks if isinstance(spec, TokenPrune)]

    code[[at["keep1"], at["keep2"]]] = 1, 2
    assert kept() == [10, 4]
    code[[at["keep1"], at["keep2"]]] = 2, 1  # 4, then 10: the second keeps all
    assert kept() == [4]
    code[[at["keep1"], at["keep2"], at["resolution"]]] = 1, 2, 1  # of 9 patches 10 are all
    assert kept() == [4]
    code[[at["depth"], at["resolution"]]] = 1, 0  # the second location is not there
    assert kept() == [10]


def test_choices_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many heads"):
        tiny(shares=(1, 0.9))
    with pytest.raises(ValueError, match="behind the first block"):
        tiny(locations=(0,))


def test_a_narrower_attention_takes_the_leading_part_of_each_head() -> None:
    space, spec = tiny(), MB3D(2, 2, 4, 2, residual="plain", bias=False, eps=1e-6)
    supernet = randomised(space)
    whole = {name: supernet.bank[f"block0/token_mixer/{name}"] for name in ("qkv/weight", "qkv/bias", "proj/weight")}
    arch = space.arch(8, [Layer(2, 2, 2)])
    weights = {
        name.removeprefix("blocks.3.token_mixer."): own
        for name, own in supernet.weights(arch).items()
        if "token_mixer" in name
    }
    assert arch.blocks[3] == spec
    rows = [head * 12 + place for head in range(2) for place in (0, 1, 4, 5, 8, 9, 10, 11)]  # of q, k and v: 4, 4, 4
    assert torch.equal(weights["qkv.weight"], whole["qkv/weight"][rows][:, :8])
    assert torch.equal(weights["qkv.bias"], whole["qkv/bias"][rows])
    assert torch.equal(weights["proj.weight"], whole["proj/weight"][:8, :8])
    weights["qkv.weight"].sum().backward()
    grad = torch.zeros_like(whole["qkv/weight"])
    grad[rows, :8] = 1
    assert torch.equal(whole["qkv/weight"].grad, grad)


def test_nothing_is_copied_where_q_k_and_v_are_as_wide_as_the_bank() -> None:
    space = tiny()
    supernet = Supernet(space)
    shared = {weight.untyped_storage().data_ptr() for weight in supernet.parameters()}
    for arch in (space.largest, space.arch(8, [Layer(2, 4, 1)]), space.arch(16, [Layer(1, 4, 2)] * 2)):
        for name, own in supernet.weights(arch).items():
            assert own.untyped_storage().data_ptr() in shared, name
    narrow = supernet.weights(space.arch(16, [Layer(4, 2, 2)]))
    copied = {name for name, own in narrow.items() if own.untyped_storage().data_ptr() not in shared}
    assert copied == {"blocks.3.token_mixer.qkv.weight", "blocks.3.token_mixer.qkv.bias"}


def test_a_narrow_network_is_absorbed_into_the_leading_part_of_each_head() -> None:
    space = tiny()
    supernet, arch = randomised(space), space.arch(8, [Layer(1, 2, 2), Layer(2, 2, 2, keep=4)])
    before = {key: weight.detach().clone() for key, weight in supernet.bank.items()}
    network = arch.build().eval()
    supernet.absorb(arch, network.state_dict())
    own = network.state_dict()
    for name, weight in supernet.weights(arch).items():
        assert torch.equal(weight, own[name]), name
    images = arch.example(3)
    with torch.no_grad():
        torch.testing.assert_close(supernet.eval()(images, arch), network(images))
    rows = [row for row in range(48) if row not in (0, 1, 4, 5, 8, 9, 10, 11)]  # of a head's q, k and v, 4 wide each
    key = "block0/token_mixer/qkv/weight"
    assert torch.equal(supernet.bank[key][rows], before[key][rows])
    smaller = space.arch(8, [Layer(1, 2, 2)], 24)  # whose positions were interpolated
    place = supernet.weights(smaller)["blocks.2.table"]
    torch.testing.assert_close(place.detach(), token_places(own["blocks.2.table"], (4, 4), (3, 3), prefix=1))


def test_a_network_with_wider_heads_than_the_bank_is_refused() -> None:
    space = tiny()
    supernet = Supernet(space)
    with pytest.raises(ValueError, match="larger than the bank"):
        supernet.weights(space.arch(16, [Layer(4, 5, 2)]))
    with pytest.raises(ValueError, match="larger than the bank"):
        supernet.weights(space.arch(16, [Layer(1, 16, 2)]))  # of no more rows than the bank's four heads of 4


def test_networks_run_on_grids_that_were_never_trained() -> None:
    space = tiny()
    supernet = randomised(space)
    arch = space.decode(space.encode(space.largest)).at(48)
    table = supernet.weights(arch)["blocks.2.table"]
    assert torch.equal(table, token_places(supernet.bank["position/table@4x4"], (4, 4), (6, 6), prefix=1))
    supernet(arch.example(2), arch).sum().backward()
    assert supernet.bank["position/table@4x4"].grad is not None


def test_a_network_without_bn_has_no_statistics_and_runs_no_images_for_them() -> None:
    space = tiny()
    assert Supernet(space).recalibrate(space.largest, iter(())) == {}


def test_no_probe_is_needless() -> None:
    """Each adds to what the others tell: a table of the 224-pixel space takes minutes, and a probe a dozen seconds of them."""
    space = vit()
    place, probes = {row: column for column, row in enumerate(space.rows)}, space.probes()
    counts = np.zeros((len(probes), len(place)))
    for i, arch in enumerate(probes):
        for row in arch.rows:
            counts[i, place[row]] += 1
    assert len(probes) == len(set(probes)) == np.linalg.matrix_rank(counts) == 200
    assert len(vit_digits().probes()) == 150


def test_the_form_is_that_of_the_published_networks() -> None:
    """Also of those that are not among them: another width and depth, without a location."""
    space, wanted = vit(), zoo.arch("deit_small_patch16_224")
    arch: Arch = space.arch(384, [Layer(6, 64, 4)] * 12)
    assert arch == wanted
    assert replace(arch.blocks[3], heads=3) == published(3).blocks[3]
