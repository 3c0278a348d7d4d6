"""Cascades: how a coarse stage's knowledge reaches a finer one, what fits together, and running one exit at a time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import Arch, Cascade, InputError
from search_spaces.blocks import MB3D, ClassToken, Embed, Head, Patch, Position, Reuse, TokenPrune
from search_spaces.blocks.attention import Attention, Cut
from search_spaces.blocks.reuse import RelationReuse, Relations
from search_spaces.cascade import CascadeNetwork, linked
from search_spaces.spread import SpreadPairs, SpreadTokens

PLAIN = MB3D(2, 4, 4, 2, residual="plain", bias=False, eps=1e-6)


def vit(patch: int, width: int = 8, depth: int = 2, size: int = 24, prefix: int = 1, classes: int = 5) -> Arch:
    start = (Patch(width, patch), *([ClassToken(prefix)] if prefix else []), Position())
    head = Head(classes, pool="token" if prefix else "mean")
    return Arch(size, 3, (*start, *[PLAIN] * depth, head))


def toy(**options: bool) -> Cascade:
    return linked([vit(12), vit(8, 12, 3), vit(6, 8)], **options)


def network_of(arch: Cascade) -> CascadeNetwork:
    torch.manual_seed(0)
    return arch.build().eval()


def upsampled(x: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """(B, C, patches of the source) as DVT says it: nearest, then adaptive average."""
    on_map = F.interpolate(x.unflatten(2, source), scale_factor=2, mode="nearest")
    return F.adaptive_avg_pool2d(on_map, target).flatten(2)


@pytest.mark.parametrize(
    ("source", "target"), [((7, 7), (10, 10)), ((10, 10), (14, 14)), ((2, 3), (5, 4)), ((3, 3), (3, 3))]
)
def test_tokens_spread_as_nearest_then_adaptive_average(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, source[0] * source[1], 6)
    found = SpreadTokens(source, target, prefix=2)(x)
    assert (found[:, :2] == 0).all()
    torch.testing.assert_close(found[:, 2:], upsampled(x.transpose(1, 2), source, target).transpose(1, 2))


@pytest.mark.parametrize("prefixes", [(1, 1), (0, 0), (2, 1), (1, 3)])
@pytest.mark.parametrize(("source", "target"), [((7, 7), (10, 10)), ((2, 3), (5, 4))])
def test_pairs_spread_along_both_axes(
    source: tuple[int, int], target: tuple[int, int], prefixes: tuple[int, int]
) -> None:
    """A leading token's row and column are spread along the patches alone; one that the source lacks has no relations."""
    old, new = prefixes
    x = torch.randn(2, 3, old + source[0] * source[1], old + source[0] * source[1])
    found = SpreadPairs(source, target, prefixes)(x)

    def rows(y: Tensor) -> Tensor:  # (B, H, n, m) -> (B, H, N, m)
        patches = upsampled(y[:, :, old:].transpose(2, 3).flatten(0, 1), source, target).transpose(1, 2)
        leading = F.pad(y[:, :, : min(old, new)], (0, 0, 0, max(0, new - old)))
        return torch.cat([leading, patches.unflatten(0, y.shape[:2])], 2)

    torch.testing.assert_close(found, rows(rows(x).transpose(2, 3)).transpose(2, 3))


@pytest.mark.parametrize("count", [5, 40])
def test_relations_are_two_convolutions_over_the_maps(count: int) -> None:
    """With gradients and without, where many pairs are worked out in parts."""
    block, x = RelationReuse(4, 12, 6), torch.randn(2, 4, count, count)
    wanted = block.fc2(F.gelu(block.fc1(x)))
    torch.testing.assert_close(block(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted.detach())


def test_the_fused_kernel_gives_the_logits_and_gradients_of_the_written_out_sum() -> None:
    block = Attention(8, 2, 4, 4, None, [Cut((3, 3), 1, "contiguous", True, 0, False)], prefix=1)
    found = []
    for told in (None, []):
        x = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        added = torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out, _, _ = block(x, relations=Relations(added, told))
        out.square().sum().backward()
        assert x.grad is not None and added.grad is not None and added.grad.abs().sum() > 0
        found.append((out.detach(), x.grad, added.grad))
        if told is not None:
            qkv = block.qkv(x).reshape(2, 10, 2, -1).transpose(1, 2)
            q, k, _ = qkv.split(4, -1)
            torch.testing.assert_close(told, [q @ k.transpose(2, 3) / 2 + added])
    torch.testing.assert_close(*found)


def test_exits_run_in_bfloat16_under_autocast() -> None:
    network, images = network_of(toy()), torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        exact = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images)
    for one, other in zip(exact, rounded, strict=True):
        torch.testing.assert_close(other.float(), one, rtol=0.05, atol=0.05)


def test_what_later_exits_depend_on() -> None:
    """Features and relations of the stage before, each with a switch of its own."""
    images = torch.randn(2, 3, 24, 24)
    for features in (False, True):
        for relations in (False, True):
            network = network_of(toy(features=features, relations=relations))
            passed = [network.exit(0, images)[1]]
            with torch.no_grad():
                usual = network.exit(1, images, passed[0])[0]
                tokens = passed[0].tokens
                assert (tokens is not None) == features, "nobody asks for them without"
                if tokens is not None:
                    other = passed[0]._replace(tokens=tokens + torch.randn(2, 5, 8))
                    assert not torch.equal(usual, network.exit(1, images, other)[0])
                assert (passed[0].relations is not None) == relations
                if relations:
                    assert passed[0].relations is not None and passed[0].relations.shape == (2, 4, 5, 5)
                    moved = torch.randn(2, 4, 5, 5)
                    other = passed[0]._replace(relations=passed[0].relations + moved)
                    assert not torch.equal(usual, network.exit(1, images, other)[0])


def test_logits_that_are_told_include_what_was_reused() -> None:
    """So that the third stage sees the first through the second."""
    network, images = network_of(toy()), torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        first = network.exit(0, images)[1]
        assert first.relations is not None
        told = [
            network.exit(1, images, one)[1].relations for one in (first, first._replace(relations=first.relations + 1))
        ]
    assert told[0] is not None and told[1] is not None
    assert told[0].shape == (2, 6, 10, 10)
    assert not torch.allclose(told[0][:, :2], told[1][:, :2])


def test_one_exit_at_a_time_and_of_some_images() -> None:
    network, images = network_of(toy()), torch.randn(5, 3, 24, 24)
    left = torch.tensor([0, 3])
    with torch.no_grad():
        together = network(images)
        assert [tuple(logits.shape) for logits in together] == [(5, 5)] * 3
        _, passed = network.exit(0, images)
        second, passed = network.exit(1, images[left], passed.of(left))
        third, _ = network.exit(2, images[left], passed)
    torch.testing.assert_close(second, together[1][left])
    torch.testing.assert_close(third, together[2][left])


def test_stages_of_their_own_image_sizes() -> None:
    arch = linked([vit(8, size=16), vit(8, size=24)])
    assert arch.image_size == 24 and [stage.image_size for stage in arch.at(48).stages] == [32, 48]
    network, images = network_of(arch), torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
        torch.testing.assert_close(network(images)[0], network.exit(0, small)[0])


def test_json_other_sizes_and_classes() -> None:
    arch = toy()
    assert Arch.from_json(arch.to_json()) == arch and Arch.from_json(arch.to_json()).id == arch.id
    assert arch.with_classes(7).classes == 7 and arch.at(48).at(24) == arch
    assert arch.keeping(adaptive=False) is arch and arch.with_loops(1) == arch
    finer = arch.at(48)
    assert [logits.shape[1] for logits in network_of(finer)(finer.example())] == [5, 5, 5]
    without = toy(features=False, relations=False)
    assert without.stages == (vit(12), vit(8, 12, 3), vit(6, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "cascade", "schema": 9}', "cascade schema 9 is not 1"),
        ('{"kind": "cascade", "schema": 1, "stages": 3}', "stages must be a list"),
        ('{"kind": "cascade", "schema": 1, "stages": [3]}', 'expected a JSON object with "kind"'),
        ('{"kind": "cascade", "schema": 1, "stages": []}', "two stages or more"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Arch.from_json(text)


def test_relations_are_compiled_whole() -> None:
    """Of more pairs than are worked out at once."""
    block, maps = RelationReuse(2, 6, 4).eval(), torch.randn(2, 2, 40, 40)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(maps), block(maps))


def test_a_stage_that_reuses_does_not_build_alone() -> None:
    with pytest.raises(ValueError, match="does not build alone; build its cascade"):
        toy().stages[1].build()
    assert toy().stages[0].build()(torch.randn(1, 3, 24, 24)).shape == (1, 5)


def test_stages_that_do_not_fit_are_refused() -> None:
    coarse, fine = toy().stages[:2]
    biased = replace(vit(12, prefix=0), blocks=(Patch(8, 12), replace(PLAIN, bias=True), Head(5)))
    pruned = replace(vit(8), blocks=(*vit(8).blocks[:4], TokenPrune(4), *vit(8).blocks[4:]))
    none = Arch(24, 3, (Patch(8, 12), Head(5)))
    body = vit(8, prefix=0).blocks
    shrinking = Arch(24, 3, (*body[:-1], Embed(8), *body[-2:]))
    for stages, message in (
        ((coarse,), "two stages or more"),
        ((coarse, vit(8, classes=6)), "the same classes"),
        ((fine, vit(6)), "the first stage of a cascade has none before it"),
        ((vit(6), fine), "but the stage before ends in"),
        ((vit(12, depth=3), fine), r"reuses maps \(4, 6\), but there are \(6, 6\)"),
        ((coarse, pruned), "stage 2 prunes tokens"),
        ((biased, vit(8)), "stage 1 is no plain ViT"),
        ((none, fine), "has no transformer blocks"),
        ((vit(8), none), "has no transformer blocks"),
        ((vit(12), vit(8).with_classes(0)), "stage 2 is an encoder, and every exit needs a classifier"),
        ((shrinking, vit(8)), "stage 1 has transformer blocks on several grids"),
    ):
        with pytest.raises(ValueError, match=message):
            Cascade(stages)


def test_blocks_and_what_they_reuse_are_checked() -> None:
    body = vit(8).blocks
    for reuse, block, message in (
        (None, replace(PLAIN, reuse=("features",)), "there are no features of an earlier stage"),
        (Reuse(8, (2, 2)), replace(PLAIN, reuse=("relations",)), "there are no relations of an earlier stage"),
        (Reuse(8, (2, 2), maps=(4, 2), width=0), replace(PLAIN, reuse=("features",)), "there are no features"),
    ):
        blocks = (*body[:3], *([reuse] if reuse else []), block, body[-1])
        with pytest.raises(ValueError, match=message):
            Arch(24, 3, blocks)
    with pytest.raises(ValueError, match="reuse must be some of features, relations, in this order"):
        replace(PLAIN, reuse=("relations", "features"))
    with pytest.raises(ValueError, match="neither a position bias nor loops nor groups"):
        replace(PLAIN, reuse=("features",), bias=True)
    for wrong in ({"width": 0}, {"maps": (4,)}, {"hidden": 0}, {"prefix": -1}, {"grid": (2,)}):
        with pytest.raises(ValueError):
            Reuse(**{"channels": 8, "grid": (2, 2), **wrong})
