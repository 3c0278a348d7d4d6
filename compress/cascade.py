"""ViTs that were trained apart, as one cascade whose later stages reuse what those before know (DVT, arXiv 2105.15075)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.adapters import from_module
from search_spaces.arch import Arch
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.reuse import ReuseModule
from search_spaces.cascade import CascadeNetwork, linked, unfit
from search_spaces.errors import InputError
from search_spaces.states import Tokens

__all__ = ["cascade", "exit_loss"]


def cascade(models: Sequence[nn.Module], feature_reuse: bool = True, relation_reuse: bool = True) -> CascadeNetwork:
    """A cascade of networks with their weights, whose exits at first give what the networks gave.

    Their widths, depths, heads, grids, class tokens and image sizes may differ; images have the largest of the sizes, and are resized for the
    other stages. All stages see the same images, so networks that were trained on images normalised in different ways are first made to see
    them alike, by `compress.seeing`. What is added changes nothing until it is trained: the MLPs' first layers have columns of 0 for reused features (which
    stand behind the norm of a token's own channels, and not in it, as in a cascade that is trained from the start), and the last of the two
    convolutions that make relations is 0. All else of them is drawn as torch draws it.

    Args:
        models: two or more that `from_module` takes, from coarse to fine: timm's `VisionTransformer`, Hugging Face's, or a `Network` of ours.
        feature_reuse: whether blocks of later stages put the last tokens of the stage before to their MLP's input.
        relation_reuse: whether they add its attention logits to their own.

    Returns:
        A network in training mode on the CPU: images (B, channels, H, W) -> a list of logits (B, classes); its `arch` is a `Cascade`.

    Raises:
        InputError: fewer than two models, one that cannot be described, or that do not fit each other: other classes or channels, a
            finer grid before a coarser one, pruned tokens.
    """
    if len(models) < 2:
        raise InputError(f"a cascade takes two networks or more, from coarse to fine; got {len(models)}")
    read = [_read(number, model) for number, model in enumerate(models, 1)]
    grids = [_patches(arch) for arch, _ in read]
    if grids != sorted(grids):
        raise InputError(
            f"give the networks from coarse to fine; their grids have {', '.join(map(str, grids))} patches"
        )
    try:
        arch = linked([one for one, _ in read], features=feature_reuse, relations=relation_reuse, joint=False)
    except ValueError as error:
        raise InputError(f"these networks make no cascade: {error}") from error
    with torch.device("cpu"):
        network = arch.build()
    for part, (_, weights) in zip(network.parts, read, strict=True):
        own = [position for position in part if not isinstance(network.blocks[position], ReuseModule)]
        _take(network, own, weights)
    return network


def exit_loss(logits: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The sum of the exits' mean cross-entropies, none weighted (DVT, arXiv 2105.15075).

    Args:
        logits: (B, classes) of every exit.
        labels: (B,) classes, or (B, classes) shares of them, as mixup makes.
        label_smoothing: share of every label that goes to all classes alike.
    """
    losses = [F.cross_entropy(own, labels, label_smoothing=label_smoothing) for own in logits]
    return torch.stack(losses).sum()


def _read(number: int, model: nn.Module) -> tuple[Arch, dict[str, Tensor]]:
    try:
        arch, weights = from_module(model)
    except InputError as error:
        raise InputError(f"network {number}: {error}") from error
    fault = unfit(arch)
    if fault is not None:
        raise InputError(f"network {number} {fault}")
    return arch, weights


def _patches(arch: Arch) -> int:
    """Patches that the last block gets; 0 for a network without tokens, which is told later."""
    return max((state.patches for state in arch.states if isinstance(state, Tokens)), default=0)


@torch.no_grad()
def _take(network: CascadeNetwork, positions: Sequence[int], weights: Mapping[str, Tensor]) -> None:
    """Give the blocks at `positions` the weights of a network of so many blocks, and let what is new add 0."""
    for number, position in enumerate(positions):
        block, prefix = network.blocks[position], f"blocks.{number}."
        given = {name.removeprefix(prefix): own for name, own in weights.items() if name.startswith(prefix)}
        if isinstance(block, MB3DModule) and block.features is not None:
            first = given["mlp.fc1.weight"]
            given["mlp.fc1.weight"] = F.pad(first, (0, block.mlp.fc1.in_features - first.shape[1]))
            given |= {name: own for name, own in block.state_dict().items() if name.startswith("features.")}
        block.load_state_dict(given)
    for block in network.blocks:
        if isinstance(block, ReuseModule) and block.relations is not None:
            nn.init.zeros_(block.relations.fc2.weight)
            assert block.relations.fc2.bias is not None
            nn.init.zeros_(block.relations.fc2.bias)
