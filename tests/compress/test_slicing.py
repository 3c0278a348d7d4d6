"""Blocks of a ViT made smaller: nothing is lost where nothing need be, and little where the rest can make up for it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress.slicing import BlockSize, plan_block, shrink, size_of
from compress.statistics import collect
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position

HEADS, WIDTH, HIDDEN = 3, 8, 36
FIRST, SECOND = 3, 4  # positions of the blocks


def arch(**form: object) -> Arch:
    block = replace(MB3D(HEADS, WIDTH, WIDTH, HIDDEN / 24, residual="plain", bias=False), **form)
    return Arch(32, 3, (Patch(24, 8), ClassToken(), Position(), block, block, Head(5, pool="token")))


def network(**form: object) -> Network:
    torch.manual_seed(0)
    made = arch(**form).build().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return made


def images(seed: int, count: int = 32) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def smaller(made: Network, sizes: dict[int, BlockSize | None]) -> Network:
    moments = collect(made, [images(0), images(1)])
    weights = made.state_dict()
    plans = {}
    for position in moments:
        spec = made.arch.blocks[position]
        assert isinstance(spec, MB3D)
        own = {
            n.partition(f"blocks.{position}.")[2]: w for n, w in weights.items() if n.startswith(f"blocks.{position}.")
        }
        plans[position] = plan_block(spec, own, moments[position])
    found, left = shrink(made.arch, weights, moments, plans, sizes)
    out = found.build().eval()
    out.load_state_dict(left)
    return out


def differ(one: Network, other: Network) -> float:
    """Root mean square of the difference of the logits, over that of the first's, on images that neither has seen."""
    with torch.no_grad():
        wanted, found = one(images(9, 64)), other(images(9, 64))
    wanted, found = wanted - wanted.mean(0), found - found.mean(0)
    return float((found - wanted).norm() / wanted.norm())


FULL = BlockSize(HEADS, WIDTH, WIDTH, HIDDEN)


def test_a_block_of_its_own_size_is_what_it_was() -> None:
    made = network()
    same = smaller(made, {FIRST: FULL, SECOND: FULL})
    assert same.arch == made.arch and size_of(made.arch.blocks[FIRST], 24) == FULL
    assert all(
        torch.equal(new, old) for new, old in zip(same.state_dict().values(), made.state_dict().values(), strict=True)
    )


def test_a_block_is_left_out() -> None:
    made = network()
    short = smaller(made, {FIRST: None})
    blocks = made.arch.blocks
    assert short.arch.blocks == (*blocks[:FIRST], *blocks[SECOND:])
    with torch.no_grad():
        for weight in made.blocks[FIRST].token_mixer.proj.parameters():
            weight.zero_()
        for weight in made.blocks[FIRST].mlp.fc2.parameters():
            weight.zero_()
    assert differ(made, short) < 1e-6


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_neurons_that_say_what_others_say_go_without_loss(mlp: str) -> None:
    made = network(mlp=mlp)
    with torch.no_grad():
        first = made.blocks[FIRST].mlp.fc1
        for weight in (first.weight, first.bias):
            parts = weight.unflatten(0, (-1, HIDDEN))
            parts[:, 12:24] = parts[:, :12]
    left = smaller(made, {FIRST: replace(FULL, hidden=24)})
    assert left.arch.blocks[FIRST] == replace(made.arch.blocks[FIRST], ratio=1.0) and differ(made, left) < 2e-3
    assert differ(made, smaller(made, {FIRST: replace(FULL, hidden=12)})) > 2e-2


def test_heads_that_say_what_others_say_go_without_loss() -> None:
    made = network()
    with torch.no_grad():
        qkv = made.blocks[SECOND].token_mixer.qkv
        for weight in (qkv.weight, qkv.bias):
            parts = weight.unflatten(0, (HEADS, -1))
            parts[2] = parts[0]
    left = smaller(made, {SECOND: replace(FULL, heads=2)})
    assert left.arch.blocks[SECOND] == replace(made.arch.blocks[SECOND], heads=2) and differ(made, left) < 2e-3


@pytest.mark.parametrize("bias", [True, False])
def test_queries_and_values_of_low_rank_get_narrower_without_loss(bias: bool) -> None:
    made = network(qkv_bias=bias)
    with torch.no_grad():
        qkv = made.blocks[FIRST].token_mixer.qkv
        mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
        mix[:, 4:] = 0
        for weight in qkv.parameters():
            for head in weight.unflatten(0, (HEADS, -1)):
                head[:WIDTH] = mix @ head[:WIDTH]
                head[2 * WIDTH :] = mix.T @ mix @ head[2 * WIDTH :]
    left = smaller(made, {FIRST: replace(FULL, key_dim=4, value_dim=4)})
    assert left.arch.blocks[FIRST] == replace(made.arch.blocks[FIRST], key_dim=4, value_dim=4)
    assert differ(made, left) < 5e-3
    assert differ(made, smaller(made, {FIRST: replace(FULL, value_dim=2)})) > 2e-2


@pytest.mark.parametrize("residual", ["plain", "layer_scale"])
def test_what_is_left_makes_up_for_what_is_gone(residual: str) -> None:
    """Against the same parts left out with all other weights as they were."""
    made = network(residual=residual, layer_scale=1.0)
    size = BlockSize(2, 6, 6, 24)
    ours = smaller(made, {FIRST: size, SECOND: size})
    plain = ours.arch.build().eval()
    weights = dict(made.state_dict())
    for position in (FIRST, SECOND):
        qkv = [f"blocks.{position}.token_mixer.qkv.{part}" for part in ("weight", "bias")]
        for name in qkv:
            heads = weights[name].unflatten(0, (HEADS, 3, WIDTH))[:2, :, :6]
            weights[name] = heads.flatten(0, 2)
        proj = f"blocks.{position}.token_mixer.proj.weight"
        weights[proj] = weights[proj].unflatten(1, (HEADS, WIDTH))[:, :2, :6].flatten(1)
        for name in ("fc1.weight", "fc1.bias"):
            weights[f"blocks.{position}.mlp.{name}"] = weights[f"blocks.{position}.mlp.{name}"][:24]
        weights[f"blocks.{position}.mlp.fc2.weight"] = weights[f"blocks.{position}.mlp.fc2.weight"][:, :24]
    plain.load_state_dict(weights)
    assert differ(made, ours) < 0.8 * differ(made, plain)


def test_biases_stay_with_their_heads() -> None:
    block = MB3D(HEADS, WIDTH, WIDTH, HIDDEN / 24, residual="plain")
    torch.manual_seed(0)
    made = Arch(32, 3, (Patch(24, 8), block, block, Head(5))).build().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
        mixer = made.blocks[1].token_mixer
        parts = torch.unflatten(mixer.proj.weight, 1, (HEADS, WIDTH))
        parts[:, 0] = 0
    left = smaller(made, {1: replace(FULL, heads=2)})
    assert differ(made, left) < 1e-3
    assert torch.equal(left.blocks[1].token_mixer.attention_biases, mixer.attention_biases[1:])


def test_what_cannot_be_is_refused() -> None:
    made = network()
    with pytest.raises(ValueError, match="cannot become"):
        smaller(made, {FIRST: replace(FULL, heads=4)})
    with pytest.raises(ValueError, match="normed"):
        smaller(network(qk_norm=True), {FIRST: replace(FULL, key_dim=4)})
    with pytest.raises(ValueError, match="at least one image"):
        collect(made, [])
