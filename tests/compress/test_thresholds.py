"""Thresholds set on images keep what was asked for, however the images are batched, and hold a budget."""

from typing import Any

import pytest
import torch

from compress import calibrate, counts_of, curve_of, hold, thresholds_of
from compress.thresholds import TOLERANCE, Batches
from compress.token_losses import Curve
from search_spaces import Arch
from search_spaces.arch import Network
from search_spaces.tokens import Chosen
from tests.search_spaces.test_token_prune import hybrid, network, vit

IMAGES = 12


def batched(arch: Arch, size: int) -> Batches:
    images = arch.example(IMAGES)
    return [(part, torch.zeros(len(part))) for part in images.split(size)]


def macs_of(arch: Arch) -> Curve:
    return curve_of(arch, lambda spec, state: spec.macs(state), range(1, 65))


def values(built: Network, arch: Arch) -> list[float]:
    return [float(one.detach()) for one in thresholds_of(built, arch)]


def cost(built: Network, arch: Arch) -> float:
    return float(macs_of(arch)([*counts_of(built, batched(arch, 4)).T.double().contiguous()]).mean())


@pytest.mark.parametrize("keeps", [(40, 20), (64, 20), (40, 1), (1, 1), (64, 64), (7, 7)])
@pytest.mark.parametrize("make", [hybrid, vit])
def test_as_many_patches_stay_on_average_as_asked_for(make: Any, keeps: tuple[int, int]) -> None:
    arch: Arch = make(keeps, True)
    built = network(arch)
    found = calibrate(built, arch, batched(arch, 5))
    assert found == dict(zip(arch.locations, values(built, arch), strict=True))
    counts = counts_of(built, batched(arch, 5))
    assert counts.shape == (IMAGES, 2)
    assert counts.double().mean(0).tolist() == list(keeps)
    assert (counts >= 1).all()
    if keeps == (40, 20):
        assert counts[:, 0].unique().numel() > 1, "images differ"


@pytest.mark.parametrize("make", [hybrid, vit])
def test_how_images_are_batched_makes_no_difference(make: Any) -> None:
    arch: Arch = make((40, 20), True)
    built = network(arch)
    wanted = calibrate(built, arch, batched(arch, IMAGES))
    counts = counts_of(built, batched(arch, IMAGES))
    for size in (1, 5):
        assert calibrate(built, arch, batched(arch, size)) == pytest.approx(wanted, rel=1e-4)
        assert torch.equal(counts_of(built, batched(arch, size)), counts)


def test_equal_scores_fall_on_the_side_that_is_nearer() -> None:
    """Of 3 and 5 patches of the worse half, none or all stay; the best of an image always does."""
    from compress.thresholds import _between

    tied = [torch.tensor([0.4, 0.2, 0.2, 0.2, 0.1]), torch.tensor([0.3, 0.2, 0.2, 0.15, 0.1])]
    for keep, kept in ((1, 1), (2, 1), (3, 3.5), (4, 4), (5, 5)):
        threshold = _between(tied, keep, 5)
        assert sum(max(1, int((own > threshold).sum())) for own in tied) / 2 == kept
    constant = [torch.full((6,), 0.2)] * 3
    assert _between(constant, 3, 6) >= 0.2 > _between(constant, 4, 6)


def test_one_patch_stays_of_images_whose_scores_are_all_low() -> None:
    """The quantile of all scores would leave them more or fewer than is counted."""
    from compress.thresholds import _between

    low, high = torch.linspace(0.01, 0.02, 10), torch.linspace(0.5, 0.6, 10)
    threshold = _between([low, high], 3, 10)
    assert [max(1, int((own > threshold).sum())) for own in (low, high)] == [1, 5]


def test_keeping_all_holds_for_images_never_seen() -> None:
    arch = vit((64, 64), True)
    built = network(arch)
    calibrate(built, arch, batched(arch, 4))
    assert max(values(built, arch)) < 0


@pytest.mark.parametrize("make", [hybrid, vit])
@pytest.mark.parametrize("share", [0.95, 0.6])
def test_a_budget_is_held_with_little_to_spare(make: Any, share: float) -> None:
    arch: Arch = make((40, 20), True)
    built = network(arch)
    before = calibrate(built, arch, batched(arch, 4))
    dense, least = (float(macs_of(arch)([torch.tensor([n])] * 2)) for n in (64.0, 1.0))
    target = least + share * (cost(built, arch) - least)
    reached = hold(built, arch, batched(arch, 4), macs_of(arch), target)
    assert reached == cost(built, arch) <= target < dense
    assert reached > (1 - 5 * TOLERANCE) * target, "12 images: counts change in steps"
    factors = [new / old for new, old in zip(values(built, arch), before.values(), strict=True)]
    assert factors[0] == pytest.approx(factors[1]) and factors[0] > 1


def test_who_is_within_the_budget_stays_as_he_is() -> None:
    arch = vit((40, 20), True)
    built = network(arch)
    before = calibrate(built, arch, batched(arch, 4))
    own = cost(built, arch)
    assert hold(built, arch, batched(arch, 4), macs_of(arch), 1.5 * own) == own
    assert list(before.values()) == values(built, arch)


def test_thresholds_that_drop_nothing_come_up_too_and_one_patch_is_the_least() -> None:
    arch = vit((64, 64), True)
    built = network(arch)
    calibrate(built, arch, batched(arch, 4))
    dense = cost(built, arch)
    assert hold(built, arch, batched(arch, 4), macs_of(arch), 0.7 * dense) <= 0.7 * dense
    with pytest.raises(ValueError, match="with one patch of each image, more than 5"):
        hold(built, arch, batched(arch, 4), macs_of(arch), 5.0)


def test_networks_without_thresholds_are_refused() -> None:
    arch = vit((40, 20), False)
    built = network(arch)
    assert counts_of(built, batched(arch, 4)).tolist() == [[40, 20]] * IMAGES
    with pytest.raises(ValueError, match=r"has no thresholds; `arch.keeping\(adaptive=True\)` has"):
        calibrate(built, arch, batched(arch, 4))


def test_calibrating_reads_the_scores_that_earlier_thresholds_leave() -> None:
    """The second location is set on what the first one, already set, lets through."""
    arch = hybrid((30, 10), True)
    built = network(arch)
    calibrate(built, arch, batched(arch, 4))
    trace: list[Chosen] = []
    with torch.no_grad():
        built(arch.example(IMAGES), trace)
    assert len(trace[1].scores) == 30 * IMAGES
    assert int(trace[1].counts.sum()) == 10 * IMAGES
