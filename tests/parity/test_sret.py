"""SReT-T against the authors' outputs: recursion, projections, groups and their permutation, on weights that a formula gives."""

import pytest
import torch

from nas.cost import macs, params
from search_spaces import InputError, zoo
from search_spaces.blocks import MB3D
from tests.parity.fill import image, permutation
from tests.parity.oracle import filled, reference


def test_parameters_macs_and_logits() -> None:
    parity = reference("sret_t")
    # The release draws a permutation anew in every forward; the reference took this one.
    network = zoo.load_released("sret_t", filled(parity), permutation=permutation)
    assert params(network.arch) == parity["params"]
    assert macs(network.arch) == parity["macs"]
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    torch.testing.assert_close(logits[:, :100], torch.tensor(parity["logits"]), rtol=1e-4, atol=1e-4)


def test_the_order_is_that_of_the_image_size() -> None:
    asked: list[int] = []

    def backwards(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.arange(count).flip(0)

    network = zoo.load_released("sret_t", filled(reference("sret_t")), image_size=160, permutation=backwards)
    orders = [order for name, order in network.state_dict().items() if name.endswith(".order")]
    assert orders and set(asked) == {20 * 20}
    assert all(torch.equal(order, torch.arange(20 * 20).flip(0)) for order in orders)


def test_what_is_no_permutation_is_refused() -> None:
    state = filled(reference("sret_t"))
    with pytest.raises(InputError, match=r"permutation\(\d+\) gives no order"):
        zoo.load_released("sret_t", state, permutation=lambda n: torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize(("name", "published"), [("sret_t", 4.756), ("sret_lt", 4.988), ("sret_s", 20.900)])
def test_published_parameter_counts(name: str, published: float) -> None:
    arch = zoo.arch(name)
    assert params(arch) == pytest.approx(1e6 * published, rel=2e-4)
    assert {spec.loops for spec in arch.blocks if isinstance(spec, MB3D)} == {2}
