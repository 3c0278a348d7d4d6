"""DVT's cascades against the authors' outputs, all three exits, on weights that a formula gives."""

import pytest
import torch

from nas.cost import macs, params
from search_spaces import Cascade, InputError, zoo
from search_spaces.blocks.position import sines
from search_spaces.states import Tokens
from tests.parity.fill import image
from tests.parity.oracle import assert_logits, filled, reference


@pytest.mark.parametrize("name", ["dvt_t2t_vit_12", "dvt_deit_small"])
def test_parameters_macs_and_logits_of_every_exit(name: str) -> None:
    parity, arch = reference(name), zoo.arch(name)
    assert isinstance(arch, Cascade)
    assert params(arch) == parity["params"]
    # The release makes features of the class token too, and drops them.
    assert macs(arch) == pytest.approx(parity["macs"], rel=3e-4)
    network = zoo.load_released(name, filled(parity))
    assert network.arch == arch and not network.training
    with torch.no_grad():
        logits = network(image(parity["image_size"], parity["batch"]))
    assert isinstance(logits, list) and len(logits) == len(parity["logits"]) == 3
    for own, wanted in zip(logits, parity["logits"], strict=True):
        assert_logits(own[:, :100], torch.tensor(wanted))


def test_released_weights_at_another_size_and_for_other_classes() -> None:
    """Fixed tables of sines are those of the new size."""
    network = zoo.load_released("dvt_t2t_vit_12", filled(reference("dvt_t2t_vit_12")), classes=3, image_size=160)
    assert network.arch == zoo.arch("dvt_t2t_vit_12").with_classes(3).at(160)
    with torch.no_grad():
        logits = network(image(160, 1))
    assert all(own.shape == (1, 3) and own.isfinite().all() for own in logits)
    arch, weights = zoo.arch("dvt_t2t_vit_12"), filled(reference("dvt_t2t_vit_12"))
    assert isinstance(arch, Cascade)
    small = arch.at(160)
    for name, stage in zip(("less_less_token", "less_token", "normal_token"), small.stages, strict=True):
        tokens = stage.states[3]
        assert isinstance(tokens, Tokens)
        weights[f"{name}.pos_embed"] = sines(tokens.count, tokens.channels)[None]
    found = zoo.load_released("dvt_t2t_vit_12", weights)
    assert found.arch == small, "told by the sines"
    again = zoo.load_released("dvt_t2t_vit_12", filled(reference("dvt_t2t_vit_12")), image_size=160)
    with torch.no_grad():
        torch.testing.assert_close(found(image(160, 1)), again(image(160, 1)))
    with pytest.raises(InputError, match="these weights are not those of dvt_t2t_vit_14"):
        zoo.load_released("dvt_t2t_vit_14", filled(reference("dvt_t2t_vit_12")))


@pytest.mark.parametrize(
    ("name", "total", "exits"),
    [
        ("dvt_t2t_vit_12", 22_461_516, (0.47, 1.45, 3.46)),
        ("dvt_t2t_vit_14", 67_881_836, (1.20, 3.82, 9.26)),
        ("dvt_deit_small", 70_442_232, (1.14, 3.64, 8.80)),
    ],
)
def test_published_counts(name: str, total: int, exits: tuple[float, ...]) -> None:
    """GMACs as far as each exit."""
    arch = zoo.arch(name)
    assert isinstance(arch, Cascade) and params(arch) == total
    work = [sum(macs(stage) for stage in arch.stages[: number + 1]) / 1e9 for number in range(3)]
    assert work == pytest.approx(exits, abs=0.006)
