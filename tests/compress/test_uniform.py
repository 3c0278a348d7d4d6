"""Cuts alike in all blocks, and by the norms of weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from compress.slicing import BlockSize, size_of
from compress.uniform import by_magnitude, resized, uniform_sizes
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, Head, Norm, Patch, Position
from search_spaces.spaces.remains import neurons
from tests.compress.test_slicing import FIRST, HEADS, HIDDEN, SECOND, WIDTH, arch, images, network

WHOLE = BlockSize(HEADS, WIDTH, WIDTH, HIDDEN)
SMALLER = replace(WHOLE, heads=HEADS - 1, hidden=24)


def cut(made: Network, sizes: dict[int, BlockSize]) -> Network:
    out = resized(made.arch, sizes).build().eval()
    out.load_state_dict(by_magnitude(made.arch, made.state_dict(), sizes))
    return out


def test_every_block_keeps_the_same_share_from_all_down_to_the_least() -> None:
    block = MB3D(4, 8, 8, 64 / 32, residual="plain", bias=False)
    made = arch()
    made = Arch(32, 3, tuple(block if isinstance(spec, MB3D) else spec for spec in made.blocks))
    found = list(uniform_sizes(made))
    hidden = size_of(block, 24).hidden
    shares = [share for share, _ in found]
    assert shares == sorted(set(shares), reverse=True) and shares[0] == 1
    assert found[0][1][FIRST] == size_of(block, 24) and resized(made, found[0][1]) == made
    for share, sizes in found:
        assert sizes[FIRST] == sizes[SECOND], "equal blocks are cut alike"
        size = sizes[FIRST]
        assert size.heads == max(1, int(4 * share)) and size.hidden in neurons(hidden)
        assert size.hidden <= share * hidden + 1e-6 or size.hidden == neurons(hidden)[-1]
    assert found[-1][1][FIRST].heads == 1 and found[-1][1][FIRST].hidden == neurons(hidden)[-1]
    assert len({tuple(sizes.items()) for _, sizes in found}) == len(found)


def with_biases() -> Network:
    """Position biases, which are of grids without a class token."""
    block = MB3D(HEADS, WIDTH, WIDTH, HIDDEN / 24, residual="plain")
    torch.manual_seed(0)
    made = Arch(32, 3, (Patch(24, 8), Position(), Norm(), block, block, Head(5))).build().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return made


@pytest.mark.parametrize("form", ["gelu", "swiglu", "biases", "no biases of q, k and v"])
def test_what_has_no_weight_is_what_goes(form: str) -> None:
    """Then the network gives what it gave."""
    forms: dict[str, Any] = {"gelu": {}, "swiglu": {"mlp": "swiglu"}, "no biases of q, k and v": {"qkv_bias": False}}
    made = with_biases() if form == "biases" else network(**forms[form])
    parts = 2 if form == "swiglu" else 1
    gone = torch.tensor([0, 2, 3, 5, 8, 13, 21, 22, 30, 31, 32, 35])
    with torch.no_grad():
        for place in (FIRST, SECOND):
            mixer, mlp = made.blocks[place].token_mixer, made.blocks[place].mlp
            rows = slice(3 * WIDTH, 2 * 3 * WIDTH)  # of the head in the middle
            for weight in mixer.qkv.parameters():
                weight[rows] = 0
            mixer.proj.weight[:, WIDTH : 2 * WIDTH] = 0
            for part in range(parts):
                mlp.fc1.weight[part * HIDDEN + gone], mlp.fc1.bias[part * HIDDEN + gone] = 0, 0
            mlp.fc2.weight[:, gone] = 0
    found = cut(made, {FIRST: SMALLER, SECOND: SMALLER})
    with torch.no_grad():
        torch.testing.assert_close(found(images(9)), made(images(9)), rtol=0, atol=1e-5)


def test_the_least_norms_go_and_nothing_is_made_up_for() -> None:
    made = network()
    found, own, was = cut(made, {FIRST: SMALLER}), made.blocks[FIRST], made.blocks[SECOND].state_dict()
    left = found.blocks[FIRST]
    assert torch.equal(left.token_mixer.proj.bias, own.token_mixer.proj.bias)
    assert torch.equal(left.mlp.fc2.bias, own.mlp.fc2.bias)
    norms = torch.cat([own.mlp.fc1.weight, own.mlp.fc1.bias[:, None], own.mlp.fc2.weight.T], 1).norm(dim=1)
    kept = norms.argsort(descending=True)[:24].sort().values
    assert torch.equal(left.mlp.fc1.weight, own.mlp.fc1.weight[kept])
    assert torch.equal(left.mlp.fc2.weight, own.mlp.fc2.weight[:, kept])
    assert all(torch.equal(found.blocks[SECOND].state_dict()[name], tensor) for name, tensor in was.items())


@pytest.mark.parametrize(
    "size", [replace(WHOLE, key_dim=4), replace(WHOLE, heads=HEADS + 1), replace(WHOLE, hidden=40)]
)
def test_narrower_or_larger_blocks_are_refused(size: BlockSize) -> None:
    made = network()
    with pytest.raises(ValueError, match="cannot become"):
        by_magnitude(made.arch, made.state_dict(), {FIRST: size})
