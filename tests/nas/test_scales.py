"""Training on several image sizes: the sampler's rule, what an epoch covers, and that `fit` keeps count of its steps."""

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.data import digits64, load
from nas.train.loop import Recipe, fit
from nas.train.retrain import fresh_network, supervised
from nas.train.scales import batch_at, scaled_batches
from search_spaces import InputError
from search_spaces.resize import resized
from search_spaces.spaces.mobilevit import MobileViTs
from tests.nas.toy import toy

PUBLISHED = {160: 327, 192: 227, 256: 128, 288: 101, 320: 81}  # the batches of MobileViT's release, at a base of 256
RECIPE = Recipe(epochs=3, batch_size=24, lr=5e-3, sides=(32, 48, 64))


def agnostic() -> nn.Module:
    """A network that takes images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )


def test_a_batch_holds_the_pixels_of_the_base_batch() -> None:
    assert {side: batch_at(side, 256, 128) for side in PUBLISHED} == PUBLISHED
    assert batch_at(640, 64, 32) == 1, "at least one image"


def test_an_epoch_is_drawn_from_its_seed_and_covers_every_image() -> None:
    sides = tuple(PUBLISHED)
    plans = [scaled_batches(50_000, 256, 128, sides, seed) for seed in range(4)]
    for plan in plans:
        assert all(size == PUBLISHED[side] for side, size in plan)
        held = [size for _, size in plan]
        assert sum(held[:-1]) < 50_000 <= sum(held), "the last batch alone may hold more than is left"
    assert plans[0] == scaled_batches(50_000, 256, 128, sides, 0) != plans[1]
    drawn = Counter(side for plan in plans for side, _ in plan)
    assert all(0.15 < count / drawn.total() < 0.25 for count in drawn.values()), "sides are drawn uniformly, not images"


@pytest.mark.parametrize("augment", [False, True])
def test_batches_go_round_the_images_and_start_again(augment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits64, "SIZES", {"train": 50, "val": 10, "test": 10})
    data = load("digits64")
    sizes = [20, 7, 16, 20]
    batches = [images for images, _ in data.loader("train", sizes, seed=3, augment=augment)]
    assert [len(images) for images in batches] == sizes
    once = torch.cat([images for images, _ in data.loader("train", 50, seed=3, augment=augment)])
    assert torch.equal(torch.cat(batches), torch.cat([once, once[:13]]))


def watched(seen: list[tuple[int, torch.Tensor, torch.Tensor]]):
    """An objective that notes step, images and labels."""

    def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
        seen.append((step, images.clone(), labels.clone()))
        yield from supervised(RECIPE, None)(model, images, labels, step)

    return losses


def test_the_objective_gets_images_of_the_drawn_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized from the native size, not from that of the network; every epoch has batches of its own."""
    monkeypatch.setattr(digits64, "SIZES", {"train": 100, "val": 10, "test": 10})
    data, native = load("digits64", image_size=48), load("digits64")
    model = agnostic()
    model[-1] = nn.Linear(8, 10)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    fit(model, watched(seen), data, RECIPE, tmp_path / "c.pt", "x")
    plans = [RECIPE.batches(data, epoch) for epoch in range(3)]
    assert len({tuple(plan) for plan in plans}) == 3
    assert [step for step, _, _ in seen] == list(range(RECIPE.steps(data)))
    expected = iter(seen)
    for epoch, plan in enumerate(plans):
        assert all(size == batch_at(side, 48, 24) for side, size in plan)
        loader = native.loader("train", [size for _, size in plan], seed=RECIPE.draw_seed(epoch), augment=True)
        for (side, _), (images, labels) in zip(plan, loader, strict=True):
            _, found, found_labels = next(expected)
            assert torch.equal(found, resized(images, side))
            assert torch.equal(found_labels, labels)
    assert len({images.shape[-1] for _, images, _ in seen}) == 3


def test_the_learning_rate_falls_to_its_end_with_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.scheduler import CosineLRScheduler

    lengths: list[int] = []
    original = CosineLRScheduler.__init__

    def noted(self: CosineLRScheduler, *args: object, **kwargs: int) -> None:
        lengths.append(kwargs["t_initial"])
        original(self, *args, **kwargs)

    monkeypatch.setattr(CosineLRScheduler, "__init__", noted)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    fit(agnostic(), watched(seen), toy(), RECIPE, tmp_path / "c.pt", "x")
    assert lengths == [len(seen)] == [seen[-1][0] + 1]


SCRIPT = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    from nas.train.loop import fit
    from nas.train.retrain import supervised
    from tests.nas.test_scales import RECIPE, agnostic
    from tests.nas.toy import toy
    torch.set_num_threads(1)
    model, recipe = agnostic(), replace(RECIPE, epochs=6, mixup=0.8, cutmix=1.0, ema=0.9)
    fit(model, supervised(recipe, None), toy(512), recipe, Path(sys.argv[1] + ".pt"), "x")
    torch.save(model.state_dict(), sys.argv[1])
"""


def test_kill_nine_and_resume_ends_with_the_same_weights(tmp_path: Path) -> None:
    """At several sides and with mixed images, whose draws depend on the step."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=100)
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    while not (tmp_path / "killed.pt").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, timeout=100)
    whole, resumed = (torch.load(tmp_path / name, weights_only=True) for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_mobilevit_is_trained_at_sides_whose_maps_are_odd_too(tmp_path: Path) -> None:
    """On one set of weights, which no grid is in; the last map has 1, 2 and 3 places a side, of which odd ones are resized."""
    space = MobileViTs("tiny", (32,), ((8,), (8,), (8,), (16,), (16,)), (2,), ((16,),), ((1,),), classes=4)
    arch = space.largest
    assert [arch.at(side).states[-3].height for side in (32, 64, 96)] == [1, 2, 3]
    recipe = replace(RECIPE, sides=(32, 64, 96), epochs=2)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    network = fresh_network(arch, 0)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
        seen.append((step, images, labels))
        yield from supervised(recipe, None, arch)(model, images, labels, step)

    fit(network, losses, toy(), recipe, tmp_path / "c.pt", "x")
    assert {images.shape[-1] for _, images, _ in seen} == {32, 64, 96}
    assert all(
        weight.isfinite().all() and (weight != before[name]).any() for name, weight in network.named_parameters()
    )


@pytest.mark.parametrize("sides", [(16,), (64, 31), (2000,), (64, 64), (-64,), (0,)])
def test_sides_that_mean_nothing(sides: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="sides of images must be different whole numbers from 32 to 1024, got"):
        replace(RECIPE, sides=sides)
