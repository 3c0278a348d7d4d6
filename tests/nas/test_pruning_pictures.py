"""Which patches stay, by hand-made scores, and the picture of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from compress.kept import GONE, patch_tokens
from nas.pruning.pictures import FAINT, GAP, GREY, IMAGES, SIDE, picture, write_kept
from search_spaces.arch import AT_ONCE, Arch
from search_spaces.blocks import ClassToken, Head, Patch, Position, TokenPrune
from search_spaces.tokens import Chosen, Kept
from tests.nas.toy import toy
from tests.search_spaces.test_merging import reduced
from tests.search_spaces.test_token_prune import PLAIN, network, vit

SCORES = torch.tensor([0.3, 0.1, 0.2, 0.4])  # of the places on a grid of 2 x 2


def test_masks_are_of_places_on_the_grid_at_every_location() -> None:
    """Behind the first location tokens lie in another order, in which the second one's scores come."""
    start = (Patch(16, 16), ClassToken(), Position())
    arch = Arch(32, 3, (*start, PLAIN, TokenPrune(3), PLAIN, TokenPrune(2), PLAIN, Head(4, pool="token")))
    built = arch.build()

    def give(module: Any, inputs: Any, kept: Kept) -> Kept:
        places = torch.arange(4)[None] if kept.places is None else kept.places
        return replace(kept, score=SCORES[places])

    for place in arch.locations:
        built.blocks[place - 1].register_forward_hook(give)
    first, second = (own != GONE for own in patch_tokens(built, arch.example(3)))
    assert built.training, "it comes back in the mode it was in"
    assert first.shape == second.shape == (3, 2, 2) and first.dtype == torch.bool
    assert first[0].flatten().nonzero()[:, 0].tolist() == [0, 2, 3]
    assert second[0].flatten().nonzero()[:, 0].tolist() == [0, 3]
    assert torch.equal(first[0], first[2]) and torch.equal(second[0], second[2])


@pytest.mark.parametrize("adaptive", [False, True])
def test_masks_agree_with_what_the_locations_chose(adaptive: bool) -> None:
    arch, count = vit((40, 20), adaptive), AT_ONCE + 2
    built, images = network(arch), arch.example(AT_ONCE + 2)
    first, second = (own != GONE for own in patch_tokens(built, images))
    trace: list[Chosen] = []
    with torch.no_grad():
        built(images, trace)
    assert torch.equal(first.flatten(1).sum(1), trace[0].counts) and torch.equal(
        second.flatten(1).sum(1), trace[1].counts
    )
    assert torch.equal(first.flatten(1), trace[0].kept.reshape(count, -1))
    assert not (second & ~first).any(), "what is dropped never comes back"
    assert adaptive or ((first.flatten(1).sum(1) == 40).all() and (second.flatten(1).sum(1) == 20).all())


@pytest.mark.parametrize("rest", ["fused", "merged"])
def test_numbers_are_of_the_tokens_as_they_go_on(rest: str) -> None:
    """A merged token stands for as many patches as have its number; what is fused is not kept."""
    arch = reduced(rest, (40, 25))
    built, image, sizes = network(arch), arch.example(1), []
    for place in arch.locations:
        built.blocks[place].register_forward_hook(lambda module, given, left: sizes.append(left.sizes))
    found = patch_tokens(built, image)
    for numbers, counts, keep in zip(found, sizes, (40, 25), strict=True):
        seen = numbers[numbers >= 0].bincount()
        assert len(seen) == keep and seen.min() >= 1
        assert (seen == 1).all() if rest == "fused" else seen.tolist() == counts[0, 1:].tolist()
    assert all((numbers >= 0).all() == (rest == "merged") for numbers in found)


def test_a_merged_patch_has_the_number_of_the_one_it_went_into() -> None:
    arch = Arch(32, 3, (Patch(16, 16), ClassToken(), PLAIN, TokenPrune(3, rest="merged"), PLAIN, Head(4, pool="token")))
    built = arch.build()
    keys = torch.eye(3)[torch.tensor([0, 0, 1, 2])][None]  # the first patch is like the second
    built.blocks[2].register_forward_hook(lambda module, given, kept: replace(kept, keys=keys))
    (numbers,) = patch_tokens(built, arch.example(1))
    assert numbers.tolist() == [[[1, 1], [0, 2]]], "the one of the first set that stays, and then the second set"


def test_merged_patches_are_shown_as_their_mean() -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    half = SIDE // 2
    drawn = picture(images, [torch.tensor([[[1, 1], [0, 2]]])])
    pane = drawn[:, GAP : GAP + SIDE, SIDE + 2 * GAP : -GAP]
    mean = (images[0, :, :half, :half] + images[0, :, :half, half:]) / 2
    torch.testing.assert_close(pane[:, :half], torch.cat([mean, mean], 2))
    assert torch.equal(pane[:, half:], images[0, :, half:])


def test_images_that_the_grid_does_not_divide_are_enlarged() -> None:
    drawn = picture(torch.rand(1, 3, 32, 32), [torch.zeros(1, 5, 5, dtype=torch.int64)])
    assert drawn.shape == (3, 115 + 2 * GAP, 2 * 115 + 3 * GAP)


def test_dropped_patches_are_grey() -> None:
    images = torch.rand(2, 3, SIDE, SIDE)
    few = torch.full((2, 2, 2), -1)
    few[0, 0, 1] = few[1, 1, 0] = 0
    drawn, half = picture(images, [few, torch.arange(4).reshape(1, 2, 2).repeat(2, 1, 1)]), SIDE // 2
    assert drawn.shape == (3, 2 * (SIDE + GAP) + GAP, 3 * (SIDE + GAP) + GAP)
    panes = drawn[:, GAP:, GAP:].unfold(1, SIDE, SIDE + GAP).unfold(2, SIDE, SIDE + GAP)  # (3, images, panes, H, W)
    assert torch.equal(panes[:, 0, 0], images[0]) and torch.equal(panes[:, 1, 2], images[1])
    one = panes[:, 0, 1]
    assert torch.equal(one[:, :half, half:], images[0, :, :half, half:])
    assert (one[:, half:] - GREY).abs().max() <= FAINT / 2 + 1e-6


def test_the_picture_is_written_for_networks_that_drop_patches(tmp_path: Path) -> None:
    built, path = network(vit((40, 20), False)), tmp_path / "kept.png"
    assert write_kept(built, toy(), path) == path
    with Image.open(path) as drawn:
        side = SIDE + GAP  # which the grid of 8 divides
        assert drawn.size == (3 * side + GAP, IMAGES * side + GAP)
    dense = Arch(32, 3, tuple(spec for spec in built.arch.blocks if not isinstance(spec, TokenPrune)))
    assert write_kept(dense.build(), toy(), tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()
