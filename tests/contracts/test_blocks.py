"""What every block kind promises, for every kind in BLOCKS."""

import re
from dataclasses import replace

import pytest
import torch

from search_spaces import BLOCKS
from search_spaces.blocks import (
    MB3D,
    MB4D,
    AttentionEmbed,
    AttentionPool,
    BlockSpec,
    ClassToken,
    Conv,
    Embed,
    Head,
    InvertedResidual,
    LiteBottleneck,
    MapAttention,
    MobileFormer,
    MobileFormerEmbed,
    MobileFormerPool,
    MobileViT,
    Norm,
    Normalise,
    Patch,
    Position,
    Reuse,
    SideTokens,
    Stem,
    TokenPrune,
    TokensToToken,
)
from search_spaces.blocks.reuse import Layer, Passed
from search_spaces.blocks.streams import Pair
from search_spaces.regrid import grid_of
from search_spaces.spread import SpreadTokens
from search_spaces.states import Earlier, Logits, Map, Scorer, State, Streams, Tokens
from search_spaces.tokens import Kept

CASES: dict[str, list[tuple[BlockSpec, State]]] = {
    "stem": [
        (Stem(8), Map(3, 16, 16)),
        (Stem(6), Map(1, 15, 17)),
        (Stem(8, convs=3), Map(3, 16, 16)),
        (Stem(8, act="gelu"), Map(3, 16, 16)),
        (Stem(8, convs=1, act="relu6", bias=False), Map(3, 15, 16)),
    ],
    "position": [
        (Position(), Map(8, 4, 4)),
        (Position(), Tokens(12, 6, (3, 4))),
        (Position("sines"), Tokens(13, 6, (3, 4), prefix=1)),
    ],
    "embed": [
        (Embed(12), Map(8, 8, 8)),
        (Embed(5), Map(8, 7, 9)),
        (Embed(5, "separable"), Tokens(12, 6, (3, 4))),
        (Embed(12, "depthwise", norm=False), Tokens(12, 6, (3, 4))),
    ],
    "mb4d": [
        (MB4D(), Map(8, 4, 4)),
        (MB4D(ratio=1.5, layer_scale=0.1), Map(6, 3, 5)),
        (MB4D(2, mixer="depthwise"), Map(6, 3, 5)),
        (MB4D(2, residual="coefficients"), Map(6, 3, 5)),
    ],
    "mb3d": [
        (MB3D(2, 4, 8, 2), Map(8, 4, 4)),
        (MB3D(3, 5, 7, 1), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 8, 2, loops=2, nll=1, residual="coefficients", bias=False), Map(8, 4, 4)),
        (MB3D(2, 4, 8, 3.6, groups=(4,), orders=("strided",)), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 8, loops=2, groups=(2, 3), orders=("contiguous", "permuted"), seed=3), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 8, loops=2, nll=1, recursion="external"), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 8, residual="plain", bias=False, eps=1e-6), Tokens(13, 6, (3, 4), prefix=1)),
        (MB3D(2, 4, 4, bias=False, qk_norm=True), Tokens(13, 6, (3, 4), prefix=1)),
        (MB3D(2, 4, 4, 2, bias=False, mlp="swiglu"), Tokens(13, 6, (3, 4), prefix=1)),
        (MB3D(2, 4, 4, mlp="gelu_tanh"), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 4, mlp="quick_gelu"), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 4, bias=False), Tokens(7, 6, (3, 4), pruned=True, fused=True)),
        (MB3D(2, 4, 4, bias=False), Tokens(8, 6, (3, 4), prefix=1, pruned=True, sized=True)),
        (MB3D(2, 4, 8, residual="plain", groups=(2,), orders=("permuted",), inverse=False), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 4, bias=False, qkv_bias=False), Tokens(12, 6, (3, 4))),
        (MB3D(2, 4, 4, bias=False), Tokens(13, 6, (3, 4), prefix=1, asked=True)),
        (
            MB3D(2, 4, 4, bias=False, reuse=("features", "relations")),
            Tokens(13, 6, (3, 4), prefix=1, earlier=Earlier(5, 4, 5, 3, 7, True, True)),
        ),
        (
            MB3D(2, 4, 4, 2, bias=False, mlp="swiglu", reuse=("features",)),
            Tokens(12, 6, (3, 4), earlier=Earlier(5, 4, 4, 3, 7, False)),
        ),
        (
            MB3D(2, 4, 8, bias=False, reuse=("relations",)),
            Tokens(12, 6, (3, 4), earlier=Earlier(5, 4, 4, relations=True)),
        ),
    ],
    "reuse": [
        (Reuse(5, (2, 2), maps=(4, 6)), Tokens(13, 6, (3, 4), prefix=1)),
        (Reuse(5, (2, 2), 2, (4, 6), width=0, ratio=2), Tokens(13, 6, (3, 4), prefix=1)),
        (Reuse(5, (2, 2), 0, width=3, hidden=7, joint=False), Tokens(12, 6, (3, 4))),
    ],
    "tokens_to_token": [
        (TokensToToken(8), Map(3, 16, 20)),
        (TokensToToken(8, 5, 2, 1, 6, 3), Map(2, 16, 17)),
    ],
    "head": [
        (Head(5), Tokens(12, 6, (3, 4))),
        (Head(3, distilled=True), Map(6, 4, 4)),
        (Head(3, mean_first=True), Map(6, 4, 4)),
        (Head(3, distilled=True, norm="batch"), Map(6, 3, 5)),
        (Head(3, pool="token", eps=1e-6), Tokens(13, 6, (3, 4), prefix=1)),
        (Head(3, pool="token", distilled=True), Tokens(14, 6, (3, 4), prefix=2)),
        (Head(3), Tokens(7, 6, (3, 4), pruned=True)),
        (Head(3), Tokens(7, 6, (3, 4), pruned=True, fused=True)),
        (Head(3, mean_first=True), Tokens(8, 6, (3, 4), prefix=1, pruned=True, sized=True)),
        (Head(3, norm="none"), Tokens(1, 6, (1, 1))),
        (Head(0, pool="token"), Tokens(13, 6, (3, 4), prefix=1)),
        (Head(3, mean_first=True), Streams(Map(6, 3, 5), 2, 8)),
        (Head(3, norm="batch"), Streams(Map(6, 3, 5), 2, 8)),
    ],
    "token_prune": [
        (TokenPrune(5), Tokens(12, 6, (3, 4), scored_by=Scorer(2, 8))),
        (TokenPrune(5, adaptive=True), Tokens(12, 6, (3, 4), scored_by=Scorer(2, 8))),
        (TokenPrune(4), Tokens(10, 6, (3, 4), prefix=1, scored_by=Scorer(2, 8))),
        (TokenPrune(4, rest="fused"), Tokens(10, 6, (3, 4), prefix=1, scored_by=Scorer(2, 8, 4))),
        (
            TokenPrune(4, rest="fused"),
            Tokens(8, 6, (3, 4), prefix=1, pruned=True, scored_by=Scorer(2, 8, 4), fused=True),
        ),
        (TokenPrune(8, rest="merged"), Tokens(13, 6, (3, 4), prefix=1, scored_by=Scorer(2, 8, 4))),
        (TokenPrune(5, rest="merged"), Tokens(9, 6, (3, 4), pruned=True, scored_by=Scorer(2, 8, 4), sized=True)),
    ],
    "patch": [
        (Patch(8, 4), Map(3, 8, 12)),
        (Patch(8, 4, bias=False), Map(3, 8, 12)),
        (Patch(8, 5, padding=2), Map(3, 8, 12)),
    ],
    "attention_pool": [
        (AttentionPool(2, 2), Tokens(12, 6, (3, 4))),
        (AttentionPool(3, 1, mlp="swiglu"), Tokens(14, 6, (3, 4), prefix=2)),
        (AttentionPool(2, 2), Tokens(7, 6, (3, 4), pruned=True)),
        (AttentionPool(2, 2), Tokens(8, 6, (3, 4), prefix=1, pruned=True, fused=True)),
        (AttentionPool(2, 2), Tokens(8, 6, (3, 4), prefix=1, pruned=True, sized=True)),
    ],
    "norm": [
        (Norm(), Tokens(12, 6, (3, 4))),
        (Norm(), Tokens(7, 6, (3, 4), pruned=True)),
        (Norm(), Tokens(8, 6, (3, 4), prefix=1, pruned=True, fused=True)),
        (Norm(1e-6), Tokens(13, 6, (3, 4), prefix=1)),
    ],
    "class_token": [(ClassToken(), Tokens(12, 6, (3, 4))), (ClassToken(2), Tokens(12, 6, (3, 4)))],
    "map_attention": [
        (MapAttention(2, 4, 8, 2), Map(8, 4, 4)),
        (MapAttention(3, 5, 7, 1.5, 0.1), Map(6, 3, 5)),
        (MapAttention(2, 4, 8, 2, stride=2), Map(8, 4, 6)),
        (MapAttention(2, 4, 8, 2, stride=2), Map(8, 5, 7)),
    ],
    "attention_embed": [
        (AttentionEmbed(12, 2, 4, 8), Map(8, 4, 4)),
        (AttentionEmbed(5, 3, 2, 7), Map(6, 3, 5)),
    ],
    "lite_bottleneck": [
        (LiteBottleneck(8), Map(8, 4, 4)),
        (LiteBottleneck(12, 3, 2, groups=4), Map(8, 5, 7)),
    ],
    "side_tokens": [(SideTokens(3, 8), Map(6, 3, 5))],
    "mobile_former": [
        (MobileFormer(8, 3), Streams(Map(8, 4, 4), 3, 8)),
        (MobileFormer(12, 4, groups=4), Streams(Map(8, 3, 5), 2, 16)),
        (MobileFormer(6, 1.5, to_former=False), Streams(Map(8, 3, 5), 2, 8)),
        (MobileFormer(6, 1.5, to_mobile=False), Streams(Map(6, 3, 5), 2, 8)),
    ],
    "mobile_former_embed": [
        (MobileFormerEmbed(12), Streams(Map(8, 4, 4), 3, 8)),
        (MobileFormerEmbed(12, 3, 2, groups=4), Streams(Map(8, 5, 7), 2, 16)),
        (MobileFormerEmbed(6, 2, 3, to_former=False), Streams(Map(8, 3, 5), 2, 8)),
        (MobileFormerEmbed(6, 2, 3, to_mobile=False), Streams(Map(8, 3, 5), 2, 8)),
    ],
    "mobile_former_pool": [
        (MobileFormerPool(10), Streams(Map(8, 4, 4), 3, 8)),
        (MobileFormerPool(10, 2, groups=4), Streams(Map(8, 3, 5), 2, 8)),
        (MobileFormerPool(10, to_former=False), Streams(Map(8, 3, 5), 2, 8)),
    ],
    "normalise": [(Normalise((0.5,), (0.25,)), Map(3, 8, 8))],
    "conv": [
        (Conv(8, stride=2), Map(3, 8, 8)),
        (Conv(5, 5, 2), Map(3, 7, 9)),
        (Conv(12, 1), Map(6, 3, 5)),
    ],
    "inverted_residual": [
        (InvertedResidual(8, 1, 2), Map(8, 4, 4)),
        (InvertedResidual(6), Map(8, 4, 4)),
        (InvertedResidual(5, 2, 1.5), Map(6, 3, 5)),
    ],
    "mobilevit": [
        (MobileViT(8, 1), Map(6, 4, 4)),
        (MobileViT(12, 3, heads=3, ratio=1.5), Map(6, 2, 6)),
        (MobileViT(8), Map(6, 3, 5)),
    ],
}
ALL = [(kind, spec, state) for kind, cases in CASES.items() for spec, state in cases]


def given(state: State) -> torch.Tensor | Kept | Pair:
    """A batch of two as the block gets it."""
    generator = torch.Generator().manual_seed(0)
    assert not isinstance(state, Logits)
    if isinstance(state, Streams):
        sides = state.map.height, state.map.width
        x = torch.randn(2, state.channels, *sides, generator=generator)
        return x, torch.randn(2, state.count, state.width, generator=generator)
    if isinstance(state, Tokens) and (state.scored_by or state.pruned):
        places = torch.arange(state.patches).expand(2, -1) if state.pruned and not state.sized else None
        score = torch.rand(2, state.patches, generator=generator) / state.patches if state.scored_by else None
        return Kept(
            torch.randn(2, state.count, state.channels, generator=generator),
            places=places,
            score=score,
            fused=torch.full((2, 1), 0.1) if state.fused else None,
            sizes=1 + torch.arange(2 * state.count).reshape(2, -1) % 3.0 if state.sized else None,
            keys=torch.randn(2, state.patches, 4, generator=generator) if state.scored_by else None,
        )
    shape = (
        (2, state.channels, state.height, state.width) if isinstance(state, Map) else (2, state.count, state.channels)
    )
    return torch.randn(*shape, generator=generator)


def run(module: torch.nn.Module, spec: BlockSpec, state: State) -> torch.Tensor | Kept:
    """What the block gives, in a cascade's later stage with what the stage before has: 2 x 2 patches."""
    earlier = getattr(state, "earlier", None)
    if earlier is None or not isinstance(spec, MB3D) or not isinstance(state, Tokens):
        return module(given(state))
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 4, earlier.channels, generator=generator) if earlier.width else None
    added = torch.randn(2, spec.heads, state.count, state.count, generator=generator) if earlier.relations else None
    return module(given(state), layer=Layer(features, SpreadTokens((2, 2), state.grid, state.prefix), added))


def relations_of(module: torch.nn.Module, spec: Reuse) -> torch.Tensor | None:
    """What a reuse block makes of the relations that the stage before passed."""
    generator = torch.Generator().manual_seed(2)
    relations = torch.randn(2, spec.maps[0], spec.count, spec.count, generator=generator) if spec.maps else None
    features, found = module(Passed(torch.randn(2, spec.count, spec.channels, generator=generator), relations))
    assert (features is None) == (not spec.width)
    assert features is None or features.shape == (2, spec.count - spec.prefix, spec.channels)
    assert (found is None) == (not spec.maps)
    return found


def test_every_kind_has_cases() -> None:
    assert CASES.keys() == BLOCKS.keys()


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_output_params_and_rows(kind: str, spec: BlockSpec, state: State) -> None:
    assert BLOCKS[kind] is type(spec)
    assert spec.kind == kind
    module = spec.build(state)
    promised = spec.output(state)
    if isinstance(spec, Reuse):  # the tokens do not pass through it
        found = relations_of(module, spec)
        assert found is None or found.shape == (2, spec.maps[1], spec.count, spec.count)
        out = given(promised)
    else:
        out = run(module, spec, state)
    if isinstance(out, Kept):
        assert isinstance(promised, Tokens)
        count = promised.count if out.mask is None else out.mask.shape[1]  # in training all tokens stay
        assert out.x.shape == (2, count, promised.channels)
    elif isinstance(promised, Streams):
        x, z = out
        assert x.shape == (2, promised.channels, promised.map.height, promised.map.width)
        assert z.shape == (2, promised.count, promised.width)
    elif isinstance(promised, Map):
        assert out.shape == (2, promised.channels, promised.height, promised.width)
    elif isinstance(promised, Tokens):
        assert out.shape == (2, promised.count, promised.channels)
    else:
        assert out.shape == (2, promised.classes)
    assert sum(parameter.numel() for parameter in module.parameters()) == spec.params(state)
    keys = [row.key for row in spec.rows(state)]
    assert keys
    repeats = max(getattr(spec, "loops", 1), getattr(spec, "depth", 1), *getattr(spec, "maps", ()))
    assert len(set(keys)) == len(keys) or repeats > 1


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_the_macs_of_the_rows_add_up_to_the_blocks(kind: str, spec: BlockSpec, state: State) -> None:
    found = spec.row_macs(state)
    assert len(found) == len(spec.rows(state))
    assert None in found or sum(work for work in found if work is not None) == spec.macs(state)


def unscored(state: State) -> State:
    """The shape alone."""
    return replace(state, scored_by=None) if isinstance(state, Tokens) else state


@pytest.mark.parametrize("share", [7 / 8, 1 / 16])
@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_narrower_blocks_take_and_give_the_same_with_less_work(
    kind: str, spec: BlockSpec, state: State, share: float
) -> None:
    for what, narrow in spec.narrower(state, share).items():
        size, less = map(int, re.findall(r"\d+", what))
        assert size * share <= less < size or less == size - 1, what
        assert unscored(narrow.output(state)) == unscored(spec.output(state))
        assert narrow.macs(state) < spec.macs(state)


def test_sizes_that_can_shrink_are_named() -> None:
    block, state = MB3D(2, 4, 8, 2, loops=2, nll=1), Map(8, 4, 4)
    found = {"FFN width 16 → 14", "heads 2 → 1", "q/k width 4 → 3", "v width 8 → 7", "NLL width 8 → 7"}
    assert block.narrower(state, 7 / 8).keys() == found
    assert MB3D(1, 1, 8, 2).narrower(state, 0.5).keys() == {"FFN width 16 → 8", "v width 8 → 4"}
    assert MB4D(2).narrower(state, 0.5) == {"FFN width 16 → 8": MB4D(1)}


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_gradients_reach_every_parameter(kind: str, spec: BlockSpec, state: State) -> None:
    module = spec.build(state)
    learned = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not learned:
        return
    out = relations_of(module, spec) if isinstance(spec, Reuse) else run(module, spec, state)
    out = torch.cat([part.flatten() for part in out]) if isinstance(out, tuple) else out
    out = out.mask if isinstance(out, Kept) and out.mask is not None else out.x if isinstance(out, Kept) else out
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def fitting(spec: BlockSpec, state: State) -> BlockSpec:
    """The block on a larger state, where no more than half of the patches can be merged."""
    if isinstance(spec, TokenPrune) and isinstance(state, Tokens):
        return replace(spec, keep=max(spec.keep, spec.least(state.patches)))
    return spec


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_other_shapes_have_other_row_keys(kind: str, spec: BlockSpec, state: State) -> None:
    """A row must not be shared by sub-blocks that take different times."""
    wider: State = Map(state.channels * 2, 16, 16)
    if isinstance(state, Streams):
        wider = Streams(wider, state.count + 1, state.width)
    if isinstance(state, Tokens):
        wider = replace(state, count=state.count + 36, channels=12, grid=(6, 8))
    assert not {row.key for row in spec.rows(state)} & {row.key for row in fitting(spec, wider).rows(wider)}


def finer(state: State) -> State:
    """The state with as many channels on a grid with twice the sides."""
    assert not isinstance(state, Logits)
    if isinstance(state, Map):
        return replace(state, height=2 * state.height, width=2 * state.width)
    if isinstance(state, Streams):
        finest = finer(state.map)
        assert isinstance(finest, Map)
        return replace(state, map=finest)
    rows, columns = state.grid
    return replace(state, count=state.count + 3 * rows * columns, grid=(2 * rows, 2 * columns))


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_what_belongs_to_a_grid_can_be_carried_to_another(kind: str, spec: BlockSpec, state: State) -> None:
    """So that a network runs at sizes it was not trained at."""
    own = dict(spec.build(state).named_parameters())
    other_state = finer(state)
    other = dict(fitting(spec, other_state).build(other_state).named_parameters())
    learned = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
    differing = {name for name, parameter in learned.items() if parameter.shape != other[name].shape}
    assert differing == spec.grid_params(state).keys()
    for name, grid in spec.grid_params(state).items():
        carried = spec.regrid(name, own[name], other_state, grid_of(grid))
        assert carried.shape == other[name].shape, name
        assert spec.regrid(name, own[name], state, grid_of(grid)) is own[name]
        ones = torch.ones_like(own[name])
        torch.testing.assert_close(spec.regrid(name, ones, other_state, grid_of(grid)), torch.ones_like(other[name]))
    if type(spec).grid_params is BlockSpec.grid_params:
        with pytest.raises(ValueError, match="no parameter x that belongs to a grid"):
            spec.regrid("x", torch.ones(1), state, (1, 1))


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_pieces_of_a_parameter_are_views_of_all_of_it(kind: str, spec: BlockSpec, state: State) -> None:
    for name, own in spec.build(state).named_parameters():
        pieces = spec.split(name, own, state)
        assert sum(piece.numel() for piece in pieces.values()) == own.numel()
        assert all(piece.untyped_storage().data_ptr() == own.untyped_storage().data_ptr() for piece in pieces.values())
        assert torch.equal(spec.join(name, pieces, state), own), name


@pytest.mark.parametrize(("kind", "spec", "state"), ALL)
def test_a_shallower_block_has_no_other_weights(kind: str, spec: BlockSpec, state: State) -> None:
    shallow = spec.shallower(1)
    own = {name: tensor.shape for name, tensor in spec.build(state).named_parameters()}
    assert {name: tensor.shape for name, tensor in shallow.build(state).named_parameters()}.items() <= own.items()
    assert shallow.output(state) == spec.output(state) and shallow.macs(state) <= spec.macs(state)
    assert shallow.shallower(1) == shallow and spec.shallower(9) == spec


@pytest.mark.parametrize("kind", BLOCKS)
def test_logits_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="got Logits"):
        CASES[kind][0][0].output(Logits(3))
