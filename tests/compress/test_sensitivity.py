"""Losses of frames: image size, width and patches each run alone, also where an image is too small or too large for a plan."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.dense import Dense, compared
from compress.sensitivity import frame_losses
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.spaces.frames import PARTS, Frame
from search_spaces.zoo.vit import HEADS, vit

PATCH = 8
BLOCK = MB3D(2, 8, 8, 2.0, residual="plain", bias=False)
WEIGHTS = {"dropped": 1.0, "fused": 0.7, "merged": 0.4}


def losing(frame: Frame, counts: list[int], side: int) -> float:
    """What an invented network loses: by its image size, its width, and the shares of patches that are left before its blocks."""
    patches = (side // PATCH) ** 2
    gone = sum((1 - count / patches) / (number + 1) for number, count in enumerate(counts))
    return WEIGHTS[frame.rest] * gone + 10 / side + 10 / frame.width


def counts_of(frame: Frame, side: int) -> list[int]:
    """Patches left at each step of the frame's plan, on an image of that size."""
    return [max(1, round(share * (side // PATCH) ** 2)) for _, share in frame.plan]


@pytest.mark.parametrize("grid", range(1, 13))
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 12])
def test_losses_of_frames_add_up(grid: int, depth: int) -> None:
    """By the frame's own plan on the whole image; merging that takes more than half there is run on the smaller one."""
    arch = Arch(PATCH * grid, 3, (Patch(16, PATCH), ClassToken(), Position(), *[BLOCK] * depth, Head(5, pool="token")))
    whole = losing(Frame(PATCH * grid, 16), [], PATCH * grid)

    def divergence(frame: Frame, weights: None, first: int) -> float:
        before, kept = (frame.side // PATCH) ** 2, dict(frame.keeps)
        counts = [before := kept.get(number, before) for number, _ in frame.plan]
        return losing(frame, counts, frame.side) - whole

    dense: Any = SimpleNamespace(
        few=1, arch=arch, framed=lambda frame: SimpleNamespace(arch=frame, weights=None), divergence=divergence
    )
    found = frame_losses(dense, PARTS, lambda what: None)
    assert found[Frame(PATCH * grid, 16)] == 0
    for frame, loss in found.items():
        counts = counts_of(frame, PATCH * grid)
        halved = any(2 * after < before for before, after in pairwise([grid**2, *counts]))
        side = frame.side if frame.rest == "merged" and halved else PATCH * grid
        own = losing(frame, counts_of(frame, side), side) - losing(frame, [], side)
        assert loss == pytest.approx(own + losing(frame, [], frame.side) - whole), frame.label


def test_of_images_with_many_patches_fewer_are_run() -> None:
    nothing = torch.zeros(0)
    for arch, few, most in ((vit(HEADS["small"]), 24, 86), (vit(HEADS["small"]).at(64), 64, 1000)):
        assert Dense(arch, {}, {}, {}, nothing, nothing, {}, {}).few == few
        assert compared(arch, 5000) == most and compared(arch, 20) == 20
    assert compared(vit(HEADS["small"]).at(1024), 256) == 24
