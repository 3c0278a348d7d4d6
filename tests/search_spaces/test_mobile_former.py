"""Blocks of two streams: what the bridges do, which parts smaller blocks share, and the space of Mobile-Formers."""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import SPACES, Arch, Supernet, zoo
from search_spaces.blocks import (
    BlockSpec,
    Head,
    LiteBottleneck,
    MobileFormer,
    MobileFormerEmbed,
    MobileFormerPool,
    SideTokens,
    Stem,
)
from search_spaces.blocks.streams import DynamicRelu, Pair
from search_spaces.spaces.mobile_former import MobileFormers, Part, Stage
from search_spaces.states import Map, State, Streams

STATE = Streams(Map(8, 5, 6), 3, 16)
Weights = Mapping[str, Tensor]


def pair(state: Streams = STATE) -> Pair:
    torch.manual_seed(0)
    return torch.randn(2, state.channels, state.map.height, state.map.width), torch.randn(2, state.count, state.width)


def module(spec: BlockSpec, state: State = STATE) -> nn.Module:
    torch.manual_seed(1)
    return spec.build(state).eval()


@pytest.mark.parametrize("make", [lambda **on: MobileFormer(8, **on), lambda **on: MobileFormerEmbed(8, **on)])
def test_bridges_are_all_that_joins_the_streams_but_slopes(make: Callable[..., BlockSpec]) -> None:
    """Without the one the tokens do not see the map; without the other places see no token but token 0, which tells slopes."""
    x, z = pair()
    other, last = torch.randn_like(x), torch.cat([z[:, :2], z[:, 2:] + 1], 1)
    with torch.no_grad():
        both, deaf, mute = (module(make(**on)) for on in ({}, {"to_former": False}, {"to_mobile": False}))
        assert not torch.equal(both((x, z))[1], both((other, z))[1])
        assert torch.equal(deaf((x, z))[1], deaf((other, z))[1])
        mute.former = nn.Identity()  # in which token 0 reads from the others
        both.former = nn.Identity()
        assert torch.equal(mute((x, z))[0], mute((x, last))[0]) and not torch.equal(both((x, z))[0], both((x, last))[0])
        assert not torch.equal(mute((x, z))[0], mute((x, z + 1))[0])


def test_a_bridge_that_is_off_leaves_out_its_work_and_weights() -> None:
    whole, less = MobileFormer(8), MobileFormer(8, to_former=False, to_mobile=False)
    gone = {"bridge.to_former", "bridge.to_mobile"}
    assert {row.op for row in whole.rows(STATE)} - {row.op for row in less.rows(STATE)} == gone
    work = dict(zip([row.op for row in whole.rows(STATE)], whole.row_macs(STATE), strict=True))
    assert whole.macs(STATE) - less.macs(STATE) == sum(work[op] for op in gone) > 0
    own = {name for name, _ in less.build(STATE).named_parameters()}
    other = {name for name, _ in whole.build(STATE).named_parameters()} - own
    assert {name.partition(".")[0] for name in other} == {"to_former", "to_mobile"}
    assert Arch.from_json(network(less).to_json()) == network(less) != network(whole)


def network(spec: BlockSpec) -> Arch:
    return Arch(32, 3, (Stem(8), SideTokens(3, 16), spec, MobileFormerPool(12), Head(4, norm="none")))


def test_slopes_are_in_their_bounds_and_of_each_image() -> None:
    """a1 from 0 to 2, a2 from -1 to 1."""
    act = DynamicRelu(2, 8)
    with torch.no_grad():
        act.fc2.weight.zero_()
        act.fc2.bias.copy_(torch.tensor([9.0, -9.0, -9.0, 9.0]))  # first slopes 2 and 0, second ones -1 and 1
        x = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2).expand(1, 2, 1, 2)
        found = act(x, torch.zeros(1, 8))
    assert found.tolist() == [[[[2, 1]], [[1, 0]]]]
    torch.manual_seed(0)
    act = DynamicRelu(4, 32)
    x, tokens = torch.randn(2, 4, 3, 3), torch.randn(2, 32)
    assert torch.equal(act(x, tokens)[1:], act(x[1:], tokens[1:]))
    assert not torch.equal(act(x, tokens), act(x, tokens.flip(0)))


def corner(pieces: Weights, like: Weights) -> dict[str, Tensor]:
    """The leading part of each piece, as long in every dimension as its like."""
    return {name: pieces[name][tuple(slice(length) for length in part.shape)] for name, part in like.items()}


def leading(spec: BlockSpec, state: State, small: BlockSpec, its: State, weights: Weights) -> dict[str, Tensor]:
    """The weights of the smaller block, from those of the larger one."""
    found = {}
    for name, own in small.build(its).named_parameters():
        parts = corner(spec.split(name, weights[name], state), small.split(name, own, its))
        found[name] = small.join(name, parts, its)
    return found


@pytest.mark.parametrize(
    ("large", "small", "last"),  # and the convolution that takes the hidden channels
    [
        (MobileFormer(8, 3), MobileFormer(8, 2), "project.weight"),
        (MobileFormerEmbed(6, 3, 3), MobileFormerEmbed(6, 2, 3), "pointwise1.weight"),
        (MobileFormerEmbed(6, 3, 3), MobileFormerEmbed(6, 3, 2), "pointwise2.weight"),
        (LiteBottleneck(6, 3), LiteBottleneck(6, 2), "pointwise.weight"),
    ],
)
def test_a_smaller_expansion_is_the_leading_part_of_a_larger_one(large: BlockSpec, small: BlockSpec, last: str) -> None:
    """Of every channel's run where a depthwise convolution widens: else channels would take others' weights. What is left out is silenced."""
    lite = isinstance(large, LiteBottleneck)
    state: State = STATE.map if lite else STATE
    whole, part = module(large, state), module(small, state)
    weights, own = dict(whole.named_parameters()), dict(part.named_parameters())
    with torch.no_grad():
        for parameter in weights.values():
            parameter.normal_(std=0.3)
        taken = corner(large.split(last, weights[last], state), small.split(last, own[last], state))
        kept = {name: piece.clone() for name, piece in taken.items()}
        weights[last].zero_()
        for name, piece in taken.items():
            piece.copy_(kept[name])
        part.load_state_dict(leading(large, state, small, state, weights), strict=False)
        given = pair()[0] if lite else pair()
        for found, wanted in zip(part(given), whole(given), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_narrower_pool_keeps_the_columns_of_its_token() -> None:
    spec, narrow = MobileFormerPool(5, to_former=False), Streams(Map(4, 5, 6), 3, 16)
    whole, part = module(spec), module(spec, narrow)
    weights: dict[str, Tensor] = dict(whole.named_parameters())
    part.load_state_dict(leading(spec, STATE, spec, narrow, weights), strict=False)
    assert torch.equal(part.fc.weight, torch.cat([weights["fc.weight"][:, :24], weights["fc.weight"][:, 48:]], 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MobileFormer(0), "at least 1"),
        (lambda: MobileFormer(8, groups=3).output(STATE), "cannot cut 8 channels into 3 equal groups"),
        (lambda: MobileFormer(8).output(Map(8, 4, 4)), r"a map with tokens beside it \(side_tokens\), got Map"),
        (lambda: MobileFormer(7).output(STATE), "7 and 16 cannot be cut so"),
        (lambda: MobileFormerEmbed(8).output(Streams(Map(8, 4, 4), 3, 6)), "8 and 6 cannot be cut so"),
        (lambda: MobileFormerEmbed(8, ratio=0), "at least 1"),
        (lambda: MobileFormerPool(0), "at least 1"),
        (lambda: LiteBottleneck(8, stride=3), "stride 1 or 2, got 3"),
        (lambda: LiteBottleneck(0), "at least 1"),
        (lambda: SideTokens(0, 8), "at least 1"),
        (lambda: SideTokens(2, 8).output(STATE), "beside a map, once; got Streams"),
        (lambda: Stem(8, convs=4), "1, 2 or 3 convolutions"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def tiny(sizes: tuple[int, ...] = (32,), ratios: tuple[float, ...] = (1, 2)) -> MobileFormers:
    stages = (Stage((4, 6), (0, 1)), Stage((6, 8), (1, 2), down=False), Stage((8,), (0, 1)))
    return MobileFormers("tiny", sizes, (1, 3), 8, (4,), stages, ratios, (6,), classes=3)


@pytest.mark.parametrize("space", [tiny(), tiny((32, 24), (2,))], ids=["two ratios", "two resolutions"])
def test_size_counts_different_networks(space: MobileFormers) -> None:
    every = product(*(range(len(choice.values)) for choice in space.choices))
    codes = {tuple(int(value) for value in space.repair(np.array(code))) for code in every}
    assert space.size == len(codes) == len({space.decode(np.array(code)) for code in codes})


def test_a_stage_without_downsampling_is_told_by_its_width() -> None:
    space = tiny()
    at = {choice.name: i for i, choice in enumerate(space.choices)}
    code = space.encode(space.smallest)
    code[[at["width0"], at["width1"]]] = 1, 0  # 6 channels in both
    widths = [spec.width for spec in space.decode(code).blocks if isinstance(spec, MobileFormer | MobileFormerEmbed)]
    assert widths == [6, 8, 8]
    with pytest.raises(ValueError, match="does not downsample comes behind another"):
        MobileFormers("x", (32,), (1,), 8, (4,), (Stage((4, 6), (1,), down=False),), (1,), (6,), 3)


@pytest.mark.parametrize("size", ["151m", "214m", "294m", "508m"])
def test_published_networks_are_in_the_space(size: str) -> None:
    space, arch = SPACES["mobile_former"](), zoo.arch(f"mobile_former_{size}")
    assert space.contains(arch) and space.decode(space.encode(arch)) == arch
    assert not space.contains(arch.with_classes(10)) and not space.contains(arch.at(192))


def test_fewer_tokens_are_the_first_of_more() -> None:
    """Token 0, which is classified, is in every network, and all weights of two networks that differ in tokens alone are the same."""
    space = tiny()
    torch.manual_seed(0)
    supernet = Supernet(space)
    parts = [Part(6, (2,)), Part(8, (2,)), Part(8, ())]
    one, three = (supernet.weights(space.arch(parts, 4, tokens, 6, 32)) for tokens in (1, 3))
    bank = supernet.bank["side_tokens/tokens"]
    assert torch.equal(one["blocks.2.tokens"], bank[:1]) and torch.equal(three["blocks.2.tokens"], bank)
    assert all(torch.equal(own, three[name]) for name, own in one.items() if name != "blocks.2.tokens")


def test_no_probe_is_needless() -> None:
    """Each adds to what the others tell, as every one takes seconds of a measurement."""
    space = SPACES["mobile_former"]()
    place, probes = {row: column for column, row in enumerate(space.rows)}, space.probes()
    counts = np.zeros((len(probes), len(place)))
    for i, arch in enumerate(probes):
        for row in arch.rows:
            counts[i, place[row]] += 1
    assert len(probes) == len(set(probes)) == np.linalg.matrix_rank(counts) == 440
    assert len(place) == 703


def test_the_tokens_of_a_network_are_its_own_at_every_resolution() -> None:
    arch = zoo.arch("mobile_former_96m")
    assert arch.at(160).states[-3] == Streams(Map(128, 5, 5), 4, 128)
    assert arch.states[-3] == Streams(Map(128, 7, 7), 4, 128)
