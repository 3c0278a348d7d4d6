"""Mobile-Former against the authors' outputs, and the counts of those without any, on weights that a formula gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nas.cost import macs, params
from search_spaces import zoo
from search_spaces.zoo.loading import OF
from search_spaces.zoo.released import places
from tests.parity.fill import image
from tests.parity.oracle import assert_logits, filled, reference

COUNTS = {  # MACs in millions, of convolutions, linear layers and matmuls; parameters
    "26m": (23.55, 3_232_788),
    "52m": (49.29, 3_469_092),
    "96m": (92.02, 4_585_252),
    "151m": (146.25, 7_595_828),
    "214m": (208.37, 9_425_920),
    "294m": (286.73, 11_422_648),
    "508m": (498.47, 13_976_976),
}


@pytest.mark.parametrize(("size", "integers"), [("26m", True), ("96m", False), ("294m", False)])
def test_parameters_macs_and_logits(size: str, integers: bool) -> None:
    parity = reference(f"mobile_former_{size}")
    network = zoo.load_released(f"mobile_former_{size}", filled(parity, integers))
    assert network.arch == zoo.arch(f"mobile_former_{size}")
    assert params(network.arch) == sum(weight.numel() for weight in network.parameters()) == parity["params"]
    assert macs(network.arch) == parity["macs"]
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    assert_logits(logits[:, :100], torch.tensor(parity["logits"]))


def test_a_checkpoint_tells_which_of_two_with_the_same_names_it_is(tmp_path: Path) -> None:
    """26M has the entries of 52M, but its convolutions are in groups."""
    for name in ("mobile_former_26m", "mobile_former_52m"):
        state = {entry: torch.zeros(shape) for entry, shape in shapes(name).items()}
        save_file(state, tmp_path / "release.safetensors")
        assert zoo.from_checkpoint(tmp_path / "release.safetensors").arch == zoo.arch(name)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """What the release of a network holds, counters left out."""
    arch = zoo.arch(name)
    (naming,) = OF[name].namings(arch)
    ours = places(arch)
    return {entry: ours[to.place] for entry, to in naming.items() if not entry.endswith("num_batches_tracked")}


@pytest.mark.parametrize("size", COUNTS)
def test_published_counts(size: str) -> None:
    arch = zoo.arch(f"mobile_former_{size}")
    millions, weights = COUNTS[size]
    assert params(arch) == weights
    assert macs(arch) == pytest.approx(1e6 * millions, abs=5e3)
