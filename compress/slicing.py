"""A ViT with some of its blocks made smaller: which heads and neurons stay, and the weights of what is left."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.reduction import Elimination, eliminate, narrower_queries, narrower_values, refit
from compress.statistics import BlockMoments
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec
from search_spaces.blocks.residual import gates, hidden_width

__all__ = ["BlockSize", "Plan", "plan_block", "shrink", "shrink_block", "size_of", "weights_of"]

TINY = 1e-12  # in place of a scale of 0, which is divided by


@dataclass(frozen=True)
class BlockSize:
    """How large a block is."""

    heads: int
    key_dim: int  # of each head, as `value_dim`
    value_dim: int
    hidden: int


def size_of(spec: MB3D, channels: int) -> BlockSize:
    """The size of a block on tokens of so many channels."""
    return BlockSize(spec.heads, spec.key_dim, spec.value_dim, hidden_width(channels, spec.ratio))


@dataclass(frozen=True)
class Plan:
    """Of one block: in which order its heads and neurons go, and what narrower queries and values lose."""

    heads: Elimination
    neurons: Elimination
    queries: (
        Tensor  # (heads, d + 1) share of the products' second moment that is lost where 0, 1, … d channels are left
    )
    values: Tensor  # (heads, v + 1) the same of what is projected


def _with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """(in + 1, out) float64: the transposed weight, the bias as last row."""
    return torch.cat([weight.T, bias[None]]).double()


def _scale(weights: Mapping[str, Tensor], name: str) -> Tensor | float:
    """(channels,) what a branch is multiplied by where it joins."""
    found = weights.get(name)
    return 1.0 if found is None else torch.where(found == 0, TINY, found.double())


def plan_block(spec: MB3D, weights: Mapping[str, Tensor], moments: BlockMoments) -> Plan:
    """What each way of making a block smaller loses.

    Args:
        spec: the block.
        weights: its own, by their names in it.
        moments: see `compress.statistics`.
    """
    proj = _with_bias(weights["token_mixer.proj.weight"], weights["token_mixer.proj.bias"])
    proj = proj * _scale(weights, "ls1.gamma")
    fc2 = _with_bias(weights["mlp.fc2.weight"], weights["mlp.fc2.bias"]) * _scale(weights, "ls2.gamma")
    v = spec.value_dim
    queries = [
        _losses(_pair(moments.queries[head], moments.keys[head])) if not spec.qk_norm else _all_or_nothing(spec.key_dim)
        for head in range(spec.heads)
    ]
    values = [
        _losses(_pair(moments.context[rows, rows], proj[rows] @ proj[rows].T))
        for rows in (slice(head * v, head * v + v) for head in range(spec.heads))
    ]
    return Plan(
        eliminate(moments.context, proj, v),
        eliminate(moments.neurons, fc2),
        torch.stack(queries),
        torch.stack(values),
    )


def _pair(first: Tensor, second: Tensor) -> Tensor:
    """Squared singular values of A B^T, largest first, from the second moments of A and B."""
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    squares: Tensor = torch.linalg.eigvalsh(root @ second @ root).flip(0).clamp(min=0)
    return squares


def _losses(squares: Tensor) -> Tensor:
    """(d + 1,) share of the sum that all but the first 0, 1, … d make up."""
    left = squares.sum() - torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return (left / squares.sum()).clamp(min=0)


def _all_or_nothing(width: int) -> Tensor:
    """Of channels that cannot be mixed, as each is normed with the others."""
    return torch.cat([torch.ones(width, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def shrink(
    arch: Arch,
    weights: Mapping[str, Tensor],
    moments: Mapping[int, BlockMoments],
    plans: Mapping[int, Plan],
    sizes: Mapping[int, BlockSize | None],
) -> tuple[Arch, dict[str, Tensor]]:
    """The network with blocks of other sizes, what is left of each solved anew, so that its output changes least.

    Args:
        arch: a dense ViT.
        weights: its weights.
        moments: of its blocks, by position.
        plans: of the same blocks.
        sizes: what becomes of blocks, by position; None where one is left out. Those that are not named stay as they are.

    Raises:
        ValueError: a size is larger than the block's, or the widths of normed queries differ from the block's.
    """
    blocks: list[BlockSpec] = []
    found: dict[str, Tensor] = {}
    for position, spec in enumerate(arch.blocks):
        own = weights_of(weights, position)
        if position in sizes:
            size = sizes[position]
            if size is None:
                continue
            assert isinstance(spec, MB3D)
            spec, own = shrink_block(spec, own, moments[position], plans[position], size)
        found |= {f"blocks.{len(blocks)}.{name}": tensor for name, tensor in own.items()}
        blocks.append(spec)
    return Arch(arch.image_size, arch.channels, tuple(blocks)), found


def shrink_block(
    spec: MB3D, own: dict[str, Tensor], moments: BlockMoments, plan: Plan, size: BlockSize
) -> tuple[MB3D, dict[str, Tensor]]:
    """One block of another size and its weights, see `shrink`."""
    channels = own["norm1.weight"].shape[0]
    new = _smaller(spec, own, moments, plan, size)
    ratio = size.hidden / channels
    return replace(spec, heads=size.heads, key_dim=size.key_dim, value_dim=size.value_dim, ratio=ratio), new


def weights_of(weights: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
    """The weights of one block, by their names in it."""
    prefix = f"blocks.{position}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _smaller(
    spec: MB3D, own: dict[str, Tensor], moments: BlockMoments, plan: Plan, size: BlockSize
) -> dict[str, Tensor]:
    """The block's weights at another size."""
    whole = BlockSize(spec.heads, spec.key_dim, spec.value_dim, own["mlp.fc2.weight"].shape[1])
    pairs = [(size.heads, whole.heads), (size.key_dim, whole.key_dim), (size.value_dim, whole.value_dim)]
    if any(not 1 <= wanted <= had for wanted, had in [*pairs, (size.hidden, whole.hidden)]):
        raise ValueError(f"a block of {whole} cannot become {size}")
    if spec.qk_norm and size.key_dim != whole.key_dim:
        raise ValueError("queries that are normed keep their width")
    new = dict(own)
    if size.hidden < whole.hidden:
        new |= _fewer_neurons(spec, own, moments.neurons, plan.neurons.order[whole.hidden - size.hidden :])
    if size != replace(whole, hidden=size.hidden):
        new |= _smaller_attention(spec, own, moments, plan.heads.order[whole.heads - size.heads :], size)
    return new


def _fewer_neurons(spec: MB3D, own: dict[str, Tensor], moment: Tensor, kept: Tensor) -> dict[str, Tensor]:
    kept = kept.sort().values
    fc1, bias, parts = own["mlp.fc1.weight"], own["mlp.fc1.bias"], gates(spec.mlp)
    second = refit(moment, _with_bias(own["mlp.fc2.weight"], own["mlp.fc2.bias"]), kept).to(fc1.dtype)
    return {
        "mlp.fc1.weight": torch.unflatten(fc1, 0, (parts, -1))[:, kept].flatten(0, 1),
        "mlp.fc1.bias": torch.unflatten(bias, 0, (parts, -1))[:, kept].flatten(0, 1),
        "mlp.fc2.weight": second[:-1].T.contiguous(),
        "mlp.fc2.bias": second[-1].clone(),
    }


def _smaller_attention(
    spec: MB3D, own: dict[str, Tensor], moments: BlockMoments, kept: Tensor, size: BlockSize
) -> dict[str, Tensor]:
    kept, d, v = kept.sort().values, spec.key_dim, spec.value_dim
    # (heads, 2 d + v, channels + 1), the bias as last column
    weight = own["token_mixer.qkv.weight"]
    bias = own.get("token_mixer.qkv.bias", weight.new_zeros(len(weight)))
    joint = torch.cat([weight, bias[:, None]], 1).double()
    joint = torch.unflatten(joint, 0, (spec.heads, -1))
    matrix = _with_bias(own["token_mixer.proj.weight"], own["token_mixer.proj.bias"])
    scale = _scale(own, "ls1.gamma")
    proj = refit(moments.context, matrix, kept, v)
    heads, rows = [], []
    for number, head in enumerate(kept.tolist()):
        q, k, values = torch.split(joint[head], [d, d, v])
        narrow = proj[number * v : (number + 1) * v]
        if size.key_dim < d:
            to_q, to_k = narrower_queries(moments.queries[head], moments.keys[head], size.key_dim)
            balance = (size.key_dim / d) ** 0.25  # products are divided by the root of the width
            q, k = balance * to_q.T @ q, balance * to_k.T @ k
        if size.value_dim < v:
            at = slice(head * v, (head + 1) * v)
            to_v, narrow = narrower_values(moments.context[at, at], narrow * scale, size.value_dim)
            values, narrow = to_v.T @ values, narrow / scale
        heads.append(torch.cat([q, k, values]))
        rows.append(narrow)
    qkv, biases = torch.cat(heads).to(weight.dtype), own.get("token_mixer.attention_biases")
    return {
        **({} if biases is None else {"token_mixer.attention_biases": biases[kept]}),
        "token_mixer.qkv.weight": qkv[:, :-1].contiguous(),
        **({"token_mixer.qkv.bias": qkv[:, -1].clone()} if spec.qkv_bias else {}),
        "token_mixer.proj.weight": torch.cat(rows).T.to(weight.dtype).contiguous(),
        "token_mixer.proj.bias": proj[-1].to(weight.dtype),
    }
