"""The one resizing: what it keeps, what it averages, and that gradients pass."""

import pytest
import torch

from search_spaces.resize import Resize, resized


def test_images_of_that_size_are_returned_themselves() -> None:
    images = torch.randn(2, 3, 5, 5)
    assert resized(images, 5) is images
    assert resized(images, (5, 5)) is images
    assert resized(images, (5, 7)).shape == (2, 3, 5, 7)


@pytest.mark.parametrize("size", [3, 8, 24])
def test_a_constant_stays_and_a_ramp_stays_a_ramp(size: int) -> None:
    assert torch.allclose(resized(torch.full((1, 1, 8, 8), 0.7), size), torch.tensor(0.7))
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)
    found = resized(ramp, size)[0, 0, 0]
    wanted = (torch.arange(size) + 0.5) * 24 / size - 0.5
    torch.testing.assert_close(found[1:-1], wanted[1:-1])  # at the edges the mean reaches over fewer pixels


def test_every_pixel_counts_where_images_shrink() -> None:
    """Without antialiasing, seven of eight columns would be lost."""
    images = torch.randn(1, 1, 64, 64, requires_grad=True)
    resized(images, 8).sum().backward()
    assert images.grad is not None
    assert (images.grad > 0).all()
    with torch.no_grad():
        assert not resized(images, 8).requires_grad


@pytest.mark.parametrize(("old", "new"), [(64, 24), (9, 20)])
def test_exported_graphs_resize_by_weights_that_come_to_the_same(old: int, new: int) -> None:
    images, resize = torch.randn(2, 3, old, old), Resize(old, new)
    wanted = resized(images, new)
    assert torch.equal(resize(images), wanted)
    torch.testing.assert_close(resize.weights @ images @ resize.weights.T, wanted)
