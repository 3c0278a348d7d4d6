"""What knows nothing of the network: every block loses the same share, and by magnitude whatever has the least weight."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from compress.slicing import BlockSize, size_of, weights_of
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D
from search_spaces.blocks.residual import gates
from search_spaces.spaces.remains import neurons
from search_spaces.states import Tokens

__all__ = ["by_magnitude", "resized", "uniform_sizes"]

ROUNDING = 1e-9  # of a share times a number


def uniform_sizes(arch: Arch) -> Iterator[tuple[float, dict[int, BlockSize]]]:
    """Shares of heads and hidden neurons that every block may keep, from all of them down, each with the blocks' sizes by position.

    A block keeps the most heads, at least one, and the most neurons of `search_spaces.spaces.remains` that are no more than that
    share. Shares that give equal sizes come once, as the largest.
    """
    whole = {
        place: size_of(spec, state.channels)
        for place, (spec, state) in enumerate(arch.steps())
        if isinstance(spec, MB3D) and isinstance(state, Tokens)
    }
    shares = {heads / size.heads for size in whole.values() for heads in range(1, size.heads + 1)}
    shares |= {count / size.hidden for size in whole.values() for count in neurons(size.hidden)}
    before: dict[int, BlockSize] = {}
    for share in sorted(shares, reverse=True):
        sizes = {place: _at(size, share) for place, size in whole.items()}
        if sizes != before:
            yield share, sizes
        before = sizes


def _at(whole: BlockSize, share: float) -> BlockSize:
    counts = neurons(whole.hidden)
    hidden = next((count for count in counts if count <= share * whole.hidden + ROUNDING), counts[-1])
    return replace(whole, heads=max(1, int(share * whole.heads + ROUNDING)), hidden=hidden)


def resized(arch: Arch, sizes: Mapping[int, BlockSize]) -> Arch:
    """The network with blocks of other sizes, by position."""
    blocks = list(arch.blocks)
    for place, size in sizes.items():
        spec, state = blocks[place], arch.states[place]
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        blocks[place] = replace(
            spec,
            heads=size.heads,
            key_dim=size.key_dim,
            value_dim=size.value_dim,
            ratio=size.hidden / state.channels,
        )
    return replace(arch, blocks=tuple(blocks))


def by_magnitude(arch: Arch, weights: Mapping[str, Tensor], sizes: Mapping[int, BlockSize]) -> dict[str, Tensor]:
    """The weights of `resized(arch, sizes)`: the heads and neurons of least L2 norm are cut out, and nothing is made up for.

    A head's norm is over its rows of q, k and v and its columns of the projection, a neuron's over what leads into it and out.

    Args:
        arch: a dense ViT.
        weights: its weights.
        sizes: of blocks by position, with fewer heads and neurons but not narrower ones.

    Raises:
        ValueError: a size is larger than the block's, or of other widths.
    """
    found = dict(weights)
    for place, size in sizes.items():
        spec, state = arch.blocks[place], arch.states[place]
        assert isinstance(spec, MB3D) and isinstance(state, Tokens)
        whole = size_of(spec, state.channels)
        narrower = replace(size, heads=whole.heads, hidden=whole.hidden) != whole
        if narrower or size.heads > whole.heads or size.hidden > whole.hidden:
            raise ValueError(f"a block of {whole} cannot become {size} by leaving out heads and neurons")
        own = weights_of(weights, place)
        left = _fewer_heads(own, size.heads, whole) | _fewer_neurons(own, size.hidden, gates(spec.mlp))
        found |= {f"blocks.{place}.{name}": tensor for name, tensor in left.items()}
    return found


def _fewer_heads(own: Mapping[str, Tensor], count: int, whole: BlockSize) -> dict[str, Tensor]:
    joint = torch.unflatten(own["token_mixer.qkv.weight"], 0, (whole.heads, -1))  # (heads, 2 d + v, C)
    bias = own.get("token_mixer.qkv.bias")
    each = None if bias is None else torch.unflatten(bias, 0, (whole.heads, -1))
    proj = torch.unflatten(own["token_mixer.proj.weight"], 1, (whole.heads, -1))  # (C, heads, v)
    size = joint.square().sum((1, 2)) + proj.square().sum((0, 2))
    kept = _largest(size if each is None else size + each.square().sum(1), count)
    biases = own.get("token_mixer.attention_biases")
    return {
        **({} if biases is None else {"token_mixer.attention_biases": biases[kept]}),
        "token_mixer.qkv.weight": joint[kept].flatten(0, 1),
        **({} if each is None else {"token_mixer.qkv.bias": each[kept].flatten()}),
        "token_mixer.proj.weight": proj[:, kept].flatten(1),
    }


def _fewer_neurons(own: Mapping[str, Tensor], count: int, parts: int) -> dict[str, Tensor]:
    first = torch.unflatten(own["mlp.fc1.weight"], 0, (parts, -1))  # (parts, hidden, C)
    bias = torch.unflatten(own["mlp.fc1.bias"], 0, (parts, -1))
    second = own["mlp.fc2.weight"]  # (C, hidden)
    kept = _largest(first.square().sum((0, 2)) + bias.square().sum(0) + second.square().sum(0), count)
    return {
        "mlp.fc1.weight": first[:, kept].flatten(0, 1),
        "mlp.fc1.bias": bias[:, kept].flatten(),
        "mlp.fc2.weight": second[:, kept],
    }


def _largest(norms: Tensor, count: int) -> Tensor:
    """Places of the `count` largest, in their order."""
    return norms.topk(count).indices.sort().values
