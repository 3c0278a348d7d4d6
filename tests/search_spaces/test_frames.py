"""Frames of a ViT: image sizes of whole patches, narrower embeddings, and plans of dropping patches that mean the same at all sizes."""

from dataclasses import replace

import pytest

from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Norm, Patch, Position, Stem
from search_spaces.spaces.frames import Frame, at_side, frames, in_frame, narrowable, whole_frame
from search_spaces.spaces.remains import sizes_in

DEIT = zoo.arch("deit_tiny_patch16_224")


def test_every_frame_is_a_network_and_the_first_is_its_own() -> None:
    found = frames(DEIT)
    assert found[0] == whole_frame(DEIT) == Frame(224, 192) and in_frame(DEIT, found[0]) == DEIT
    assert len({in_frame(DEIT, frame) for frame in found}) == len(found) == 4 * (4 * 8 + 7 + 6)
    assert {frame.side for frame in found} == {224, 192, 160, 128} and {frame.width for frame in found} == {
        192,
        168,
        144,
        120,
    }
    assert all(frame.side % 16 == 0 and frame.width % 8 == 0 for frame in found)
    hidden = {round(spec.ratio * 120) for spec in in_frame(DEIT, Frame(224, 120)).blocks if isinstance(spec, MB3D)}
    assert hidden == {768}  # neurons are as many in a narrower network


@pytest.mark.parametrize(("grid", "depth"), [(14, 12), (9, 3), (8, 3), (5, 12), (4, 8), (3, 4)])
def test_a_plan_leaves_equal_shares_of_large_and_small_images(grid: int, depth: int) -> None:
    """Whichever plans an image of some size cannot have."""
    block = MB3D(2, 8, 8, 2.0, residual="plain", bias=False)
    arch = Arch(16 * grid, 3, (Patch(16, 16), ClassToken(), Position(), *[block] * depth, Head(5, pool="token")))
    for frame in frames(arch):
        patches = (frame.side // 16) ** 2
        assert [place for place, _ in frame.plan[:1]] == [place for place, _ in frame.keeps[:1]]
        for number, share in frame.plan:
            left = [keep for place, keep in frame.keeps if place <= number][-1]
            assert left == max(1, round(share * patches))
        assert at_side(arch, frame, frame.side) == frame


def test_a_plan_is_none_where_more_than_half_would_be_merged() -> None:
    block = MB3D(2, 8, 8, 2.0, residual="plain", bias=False)
    arch = Arch(40, 3, (Patch(16, 8), ClassToken(), Position(), *[block] * 2, Head(5, pool="token")))
    small, large = ([frame for frame in frames(arch) if frame.side == side and frame.keeps] for side in (32, 40))
    lacking = [frame for frame in small if at_side(arch, frame, 40) is None]
    assert len(lacking) == 1 and lacking[0].rest == "merged" and lacking[0] not in large
    assert all(at_side(arch, frame, 40) in frames(arch) for frame in small if frame not in lacking)


def test_what_is_not_named_stays() -> None:
    assert frames(DEIT, ("heads",)) == [whole_frame(DEIT)]
    assert {frame.width for frame in frames(DEIT, ("tokens", "resolution"))} == {192}
    assert {frame.rest for frame in frames(DEIT, ("tokens",))} == {"dropped"}
    assert {frame.rest for frame in frames(DEIT, ("fusing",)) if frame.keeps} == {"fused"}
    assert all(not frame.keeps for frame in frames(DEIT, ("width", "resolution")))
    sizes = sizes_in(DEIT, 0, whole_frame(DEIT), ("neurons",))
    assert sizes.heads == (3,) and sizes.key_dims == sizes.value_dims == (64,) and len(sizes.hidden) == 16


def test_a_block_that_scores_keeps_its_heads_and_values() -> None:
    frame = next(one for one in frames(DEIT, ("tokens",)) if len(one.plan) == 3)
    assert frame.scoring == {3, 6, 9}
    scoring, other = sizes_in(DEIT, 3, frame), sizes_in(DEIT, 4, frame)
    assert scoring.heads == (3,) and scoring.value_dims == (64,) and len(scoring.hidden) > 1
    assert other.heads == (3, 2, 1) and other.value_dims == (64, 32)


def test_merging_compares_by_keys_and_needs_half_of_the_patches() -> None:
    merged = [frame for frame in frames(DEIT, ("merging",)) if frame.rest == "merged"]
    assert [len(frame.keeps) for frame in merged] == [3, 3, 3, 11, 11, 11]
    assert sizes_in(DEIT, 3, merged[0]).key_dims == (64,) and sizes_in(DEIT, 4, merged[0]).key_dims == (64, 32)
    biased = Arch(32, 3, (Patch(16, 8), *[MB3D(2, 8, 8, 2.0, residual="plain")] * 4, Head(5)))
    assert {frame.rest for frame in frames(biased)} == {"dropped"}


def test_convolutions_before_the_patches_are_as_good_as_larger_patches() -> None:
    block = MB3D(4, 16, 16, residual="plain", bias=False)
    behind = (ClassToken(), Position(), block, block, Head(5, pool="token"))
    stem, plain = (Arch(64, 3, (*before, *behind)) for before in ((Stem(32, 3), Patch(64, 1)), (Patch(64, 8),)))
    assert narrowable(stem) and frames(stem) == frames(plain)
    assert {in_frame(stem, frame).states[-2].channels for frame in frames(stem)} == {64, 56, 48, 40}


def test_only_what_a_norm_reads_can_be_narrower() -> None:
    block = MB3D(2, 8, 8, 2.0, residual="plain", bias=False)
    body = (Patch(16, 8), ClassToken(), Position(), block)
    assert narrowable(Arch(32, 3, (*body, Head(5, pool="token"))))
    stem = Arch(64, 3, (Stem(8, 3), Patch(16, 1), *body[1:], Head(5, pool="token")))
    assert narrowable(stem) and {frame.side for frame in frames(stem)} == {64, 56, 48, 40}
    assert in_frame(stem, Frame(56, 8)).blocks[0] == stem.blocks[0] and in_frame(stem, Frame(56, 8)).image_size == 56
    for blocks in (
        (*body, Head(0, pool="token")),
        (*body, Head(5, norm="none")),
        (*body[:3], Norm(), block, Head(5)),
        (*body[:2], replace(body[2], form="sines"), block, Head(5)),
    ):
        arch = Arch(32, 3, blocks)
        assert not narrowable(arch) and {frame.width for frame in frames(arch)} == {16}
