"""Repair: blocks that are whole stay as they are, and what is lost is partly made up for, also where patches are dropped."""

from dataclasses import replace

import pytest
import torch

from compress.dense import examined, network_of
from compress.prune import PARTS
from compress.repair import repair
from compress.slicing import BlockSize
from search_spaces.blocks.token_prune import REST
from search_spaces.spaces.frames import Frame, Keeps, attention_blocks, whole_frame
from tests.compress.test_slicing import images, network

DATA = [images(0), images(1)]


def stream_apart(keeps: Keeps, rest: str, sizes: dict[int, BlockSize | None], ridge: float | None) -> float:
    """Divergence of what is left, repaired where there is a ridge, on images that it was not repaired with."""
    model = network()
    dense = examined(model.arch, model.state_dict(), [*DATA, images(5)], 96, PARTS)
    framed = dense.framed(
        replace(whole_frame(model.arch), keeps=keeps, rest=rest) if keeps else whole_frame(model.arch)
    )
    arch, weights = dense.shrunk(sizes, framed)
    if ridge is not None:
        left, made = iter(attention_blocks(arch)), network_of(arch, weights)
        pairs = {old: None if sizes.get(old, 0) is None else next(left) for old in attention_blocks(model.arch)}
        repair(model, {ridge: made}, pairs, torch.cat(DATA))
        weights = dict(made.state_dict())
    return dense.divergence(arch, weights, last=32)


def test_a_network_that_is_whole_stays_as_it_is() -> None:
    model = network()
    made = network_of(model.arch, model.state_dict())
    repair(model, {1e-6: made}, {place: place for place in attention_blocks(model.arch)}, images(0))
    with torch.no_grad():
        assert torch.allclose(made(images(5)), model(images(5)), atol=1e-4)


SMALL = {3: BlockSize(2, 8, 8, 24), 4: BlockSize(3, 8, 8, 16)}


@pytest.mark.parametrize("rest", ["dropped", "fused"])
@pytest.mark.parametrize(
    ("keeps", "sizes"), [((), SMALL), (((1, 9),), SMALL), ((), {3: None, 4: BlockSize(3, 8, 8, 24)})]
)
def test_what_is_lost_is_partly_made_up_for(keeps: Keeps, sizes: dict[int, BlockSize | None], rest: str) -> None:
    assert stream_apart(keeps, rest, sizes, 1e-2) < 0.9 * stream_apart(keeps, rest, sizes, None)


def test_several_are_repaired_as_each_alone() -> None:
    model = network()
    dense = examined(model.arch, model.state_dict(), DATA, 64, PARTS)
    arch, weights = dense.shrunk(SMALL, dense.framed(whole_frame(model.arch)))
    pairs = {place: place for place in attention_blocks(model.arch)}
    together = {ridge: network_of(arch, weights) for ridge in (1e-2, 1.0)}
    repair(model, together, pairs, torch.cat(DATA))
    for ridge, made in together.items():
        alone = {ridge: network_of(arch, weights)}
        repair(model, alone, pairs, torch.cat(DATA))
        assert all(torch.equal(made.state_dict()[name], own) for name, own in alone[ridge].state_dict().items())
    first, second = (torch.cat([one.flatten() for one in made.state_dict().values()]) for made in together.values())
    assert not torch.equal(first, second), "the ridge matters"


def test_frames_are_of_the_same_network() -> None:
    model = network()
    dense = examined(model.arch, model.state_dict(), DATA, 64, PARTS)
    assert dense.framed(whole_frame(model.arch)).arch == model.arch


@pytest.mark.parametrize("rest", [*REST, "dropped by thresholds"])
@pytest.mark.parametrize("form", [{}, {"qk_norm": True}])
def test_a_frame_that_keeps_all_patches_gives_the_dense_logits(rest: str, form: dict[str, bool]) -> None:
    model = network(**form)
    dense = examined(model.arch, model.state_dict(), DATA, 64, PARTS)
    framed = dense.framed(Frame(32, 24, ((1, 16),), rest.split()[0]))
    arch, weights = dense.shrunk({}, framed)
    if rest == "dropped by thresholds":
        arch = arch.keeping(adaptive=True)
        weights |= {f"blocks.{place}.threshold": torch.tensor(-1.0) for place in arch.locations}  # below all scores
    with torch.no_grad():
        assert arch.rest == rest.split()[0] and len(arch.locations) == 1
        torch.testing.assert_close(network_of(arch, weights)(images(5)), model(images(5)), rtol=0, atol=1e-5)
