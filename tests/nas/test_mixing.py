"""Mixup and CutMix: what is mixed with what, that labels follow, and that teacher and student see the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

from nas.data.loading import MIX, seeded_globals
from nas.train.loop import Recipe, fit
from nas.train.mixing import mixed, mixer
from nas.train.retrain import Teacher, fresh_network, supervised
from search_spaces import InputError
from tests.nas.toy import toy, toy_space

LABELS = torch.tensor([0, 1, 2, 3, 1, 0, 2])


def flat_images(count: int) -> torch.Tensor:
    """Images (count, 3, 8, 8), each of one value: its number."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_label_holds_what_its_image_is_made_of(alphas: tuple[float, float], step: int) -> None:
    """A pixel is a mean (mixup) or one or the other (CutMix); the mean over the image tells the shares."""
    images, labels = flat_images(6), torch.arange(6)
    kept = images.clone()
    found, shares = mixed(images, labels, mixer(*alphas, 6), 1, step)
    assert torch.equal(images, kept), "the loader's images stay as they are"
    torch.testing.assert_close(found.mean((1, 2, 3)), shares @ torch.arange(6.0))
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    for index, row in enumerate(shares):
        assert set(row.nonzero().flatten().tolist()) <= {index, 5 - index}
    whole = bool((found == found.round()).all())
    assert whole or alphas[0] > 0, "CutMix alone makes no new values"


def test_both_ways_of_mixing_are_drawn_and_shares_vary() -> None:
    mix = mixer(0.8, 1.0, 6)
    batches = [mixed(flat_images(6), torch.arange(6), mix, 0, step) for step in range(40)]
    boxes = [bool((images == images.round()).all()) for images, _ in batches]
    assert 8 < sum(boxes) < 32
    assert len({round(float(shares[0, 0]), 3) for _, shares in batches}) > 25


def test_draws_depend_on_seed_and_step_and_leave_numpy_alone() -> None:
    mix, images = mixer(0.8, 1.0, 4), torch.randn(6, 3, 8, 8)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - timm draws from it
    first = mixed(images, LABELS[:6], mix, 3, 5)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002 - timm draws from it
    assert all(torch.equal(*pair) for pair in zip(first, mixed(images, LABELS[:6], mix, 3, 5), strict=True))
    for seed, step in ((3, 6), (4, 5)):
        assert not torch.equal(first[1], mixed(images, LABELS[:6], mix, seed, step)[1])


@pytest.mark.parametrize("count", [7, 1])
def test_the_odd_image_stays_as_it_is(count: int) -> None:
    images = torch.randn(count, 3, 8, 8)
    found, shares = mixed(images, LABELS[:count], mixer(0.8, 1.0, 4), 0, 0)
    assert found.shape == images.shape and shares.shape == (count, 4)
    assert torch.equal(found[-1], images[-1])
    assert torch.equal(shares[-1], F.one_hot(LABELS[count - 1], 4).float())


def test_the_loss_is_timms_own_with_smoothed_labels() -> None:
    images, logits = torch.randn(6, 3, 8, 8), torch.randn(6, 4)
    _, shares = mixed(images, LABELS[:6], mixer(0.8, 1.0, 4), 2, 3)
    with seeded_globals(2, 3, MIX):
        _, wanted = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=4)(images.clone(), LABELS[:6])
    (loss,) = supervised(Recipe(1, smoothing=0.1), None)(lambda _: logits, images, shares, 3)
    torch.testing.assert_close(loss, -(wanted * logits.log_softmax(1)).sum(1).mean())


class Watching(nn.Module):
    """A network that keeps the images it was given in training or, as a teacher, in evaluation."""

    def __init__(self, network: nn.Module, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.clone())
        return self.network(images)


def run(recipe: Recipe, folder: Path, teacher: Teacher | None) -> list[torch.Tensor]:
    """The images that a student gets."""
    seen: list[torch.Tensor] = []
    student = Watching(fresh_network(toy_space().smallest, 0), seen)
    fit(student, supervised(recipe, teacher), toy(64), recipe, folder / "c.pt", "x")
    (folder / "c.pt").unlink()
    return seen


def test_the_teacher_scores_the_mixed_images(tmp_path: Path) -> None:
    """With and without a memory: another recipe or another size of images is another entry."""
    recipe = Recipe(2, 32, mixup=0.8, cutmix=1.0)
    asked: list[torch.Tensor] = []
    store: dict = {}
    teacher = Teacher(Watching(fresh_network(toy_space().smallest, 1), asked), 4, remembered=store)
    seen = run(recipe, tmp_path, teacher)
    assert len(seen) == len(asked) == len(store) == 4
    assert all(torch.equal(*pair) for pair in zip(seen, asked, strict=True))
    again = run(recipe, tmp_path, teacher)
    assert all(torch.equal(*pair) for pair in zip(seen, again, strict=True)) and len(asked) == 4
    plain = run(replace(recipe, mixup=0.0, cutmix=0.0), tmp_path, teacher)
    assert len(asked) == 8 and not any(torch.equal(*pair) for pair in zip(seen, plain, strict=True))
    assert teacher.scores(torch.randn(32, 3, 48, 48), recipe, 0) is not teacher.scores(seen[0], recipe, 0)
    assert len(store) == 9


def test_the_labels_that_objectives_get_are_shares(tmp_path: Path) -> None:
    kept: list[torch.Tensor] = []

    def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
        kept.append(labels)
        yield from supervised(Recipe(1), None)(model, images, labels, step)

    fit(fresh_network(toy_space().smallest, 0), losses, toy(64), Recipe(1, 32, cutmix=1.0), tmp_path / "c.pt", "x")
    assert [labels.shape for labels in kept] == [(32, 4), (32, 4)]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_alphas_that_mean_nothing(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"alpha of {name} must be at least 0"):
        Recipe(1, **{name: value})
