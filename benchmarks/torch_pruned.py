"""What a user of Torch-Pruning gets of a ViT, to compare with: timm's model, pruned by the library's documented call, as Arch and weights."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from compress import from_module
from nas.cost import macs
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, ClassToken, Head, Patch
from search_spaces.errors import InputError
from search_spaces.states import Map
from search_spaces.zoo.released import Entry
from search_spaces.zoo.vit import FAMILY

__all__ = ["TorchPruned", "Twin", "at_macs", "library", "pruned", "twin"]

ROUND_TO = 8  # channels, as the library's README recommends; its example of a ViT has 2
CLOSE = 1e-4  # logits of a model and its twin, relative to the largest
LEFT = 1.5  # heads: the library, which rounds up what goes, leaves one then, where it would leave none
BISECTIONS = 8  # to 1/256 of the channels, below a step of 8 of an MLP's


@dataclass(frozen=True)
class TorchPruned:
    """A pruned model, as its users have it, and the network with the stem before it, as one of ours with the same logits."""

    model: VisionTransformer
    network: Network


def library() -> Any:
    """The package `torch_pruning`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise InputError("this benchmark compares with Torch-Pruning; pip install torch-pruning") from error


@dataclass(frozen=True)
class Twin:
    """A plain ViT as timm's model, and what of the network comes before its patches, which the library leaves as it is."""

    network: Network
    patch: int  # the position of its patches
    model: VisionTransformer

    @torch.no_grad()
    def stem(self, images: Tensor) -> Tensor:
        """What the model sees of images."""
        for block in self.network.blocks[: self.patch]:
            images = block(images)
        return images

    def whole(self, body: Network) -> Network:
        """The network with another behind its stem."""
        arch = replace(self.network.arch, blocks=(*self.network.arch.blocks[: self.patch], *body.arch.blocks))
        network = arch.build()
        ours = self.network.state_dict()
        stem = {name: one for name, one in ours.items() if int(name.split(".")[1]) < self.patch}
        network.load_state_dict({**stem, **_moved(body.state_dict(), self.patch)})
        return network.eval()


def _moved(weights: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Weights of blocks that lie so many positions further on."""
    found = {}
    for name, tensor in weights.items():
        blocks, position, rest = name.split(".", 2)
        found[f"{blocks}.{int(position) + by}.{rest}"] = tensor
    return found


@torch.no_grad()
def twin(network: Network) -> Twin:
    """The plain ViT, with or without a stem, as timm's model.

    Raises:
        InputError: it is none that timm's constructor makes.
    """
    at = next((position for position, spec in enumerate(network.arch.blocks) if isinstance(spec, Patch)), None)
    blocks = [spec for spec in network.arch.blocks if isinstance(spec, MB3D)]
    head = network.arch.blocks[-1]
    if at is None or not isinstance(head, Head) or len({*blocks}) != 1:
        raise InputError(f"network {network.arch.id} is no ViT of equal blocks between patches and a head")
    patch, state = network.arch.blocks[at], network.arch.states[at]
    assert isinstance(patch, Patch) and isinstance(state, Map)
    body = Arch(state.height, state.channels, network.arch.blocks[at:])
    prefix = sum(isinstance(spec, ClassToken) for spec in body.blocks)
    model = VisionTransformer(
        body.image_size,
        patch.size,
        body.channels,
        body.classes,
        global_pool="token" if head.pool == "token" else "avg",
        embed_dim=patch.width,
        depth=len(blocks),
        num_heads=blocks[0].heads,
        mlp_ratio=blocks[0].ratio,
        init_values=1.0 if blocks[0].residual == "layer_scale" else None,
        class_token=prefix > 0,
        fc_norm=head.mean_first,
        norm_layer=partial(nn.LayerNorm, eps=blocks[0].eps),
    ).eval()
    naming = next(FAMILY.namings(body))
    ours = _moved(network.state_dict(), -at)
    try:
        model.load_state_dict({name: _released(entry, ours[entry.place]) for name, entry in naming.items()})
    except RuntimeError as error:
        raise InputError(f"network {network.arch.id} has parts that its twin in timm lacks") from error
    found = Twin(network.eval(), at, model)
    images = network.arch.example(2)
    wanted = network(images)
    if (model(found.stem(images)) - wanted).abs().max() > CLOSE * wanted.abs().max():
        raise InputError(f"network {network.arch.id} computes something else than its twin in timm")
    return found


def _released(entry: Entry, ours: Tensor) -> Tensor:
    """An entry as timm has it: the inverse of `Entry.write`."""
    own = ours if entry.rows is None else ours[entry.rows[0] : entry.rows[1]]
    value = own / entry.scale if entry.scale != 1 else own
    if entry.heads:
        value = value.reshape(entry.heads, 3, -1, *own.shape[1:]).transpose(0, 1).reshape(own.shape)
    return value.reshape((1,) * entry.lead + own.shape)


def pruned(
    of: Twin,
    ratio: float,
    *,
    whole_heads: bool = False,
    round_to: int = ROUND_TO,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> TorchPruned:
    """A pruned copy of the twin's model: its width, MLPs, and attention all lose `ratio` of their channels, each block alike.

    Args:
        of: the network and its model.
        ratio: of the channels, from 0 to 1.
        whole_heads: attention loses heads, but for one, not channels of every head.
        round_to: what numbers of channels are multiples of.
        batches: images and labels of which the library's Taylor importance takes gradients; without them it goes by magnitude.

    Raises:
        InputError: the library is not installed.
    """
    tp, left = library(), copy.deepcopy(of.model)
    patches = left.patch_embed
    attentions = [part for part in left.modules() if isinstance(part, Attention)]
    by = tp.importance.GroupMagnitudeImportance(p=2) if batches is None else tp.importance.GroupTaylorImportance()
    with (
        warnings.catch_warnings()
    ):  # that the class token and the positions are pruned with the width, as they should be
        warnings.filterwarnings("ignore", message="Unwrapped parameters")
        pruner = tp.pruner.BasePruner(
            left,
            torch.randn(1, patches.proj.in_channels, *patches.img_size),
            importance=by,
            pruning_ratio=ratio,
            ignored_layers=[left.head],
            num_heads={part.qkv: part.num_heads for part in attentions},
            prune_num_heads=whole_heads,
            prune_head_dims=not whole_heads,
            head_pruning_ratio=min(ratio, 1 - LEFT / attentions[0].num_heads) if whole_heads else 0.0,
            round_to=round_to,
            in_channel_groups={},  # the library's defaults are shared by all pruners of a process
            out_channel_groups={},
        )
    for images, labels in batches or ():
        F.cross_entropy(left(of.stem(images)), labels).backward()
    pruner.step()
    for part in attentions:
        part.num_heads = pruner.num_heads[part.qkv]
        part.attn_dim = part.qkv.out_features // 3
        part.head_dim = part.attn_dim // part.num_heads
        part.scale = part.head_dim**-0.5
    arch, weights = from_module(left)
    body = arch.build()
    body.load_state_dict(weights)
    left.zero_grad()
    return TorchPruned(left.requires_grad_(False), of.whole(body))


def at_macs(of: Twin, wanted: float, *, whole_heads: bool = False) -> tuple[TorchPruned, float]:
    """The pruned copy whose multiply-accumulates are nearest to `wanted`, and its ratio of channels."""
    low, high = 0.0, 1.0
    found: list[tuple[float, TorchPruned, float]] = []
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        one = pruned(of, ratio, whole_heads=whole_heads)
        work = macs(one.network.arch)
        found.append((abs(work / wanted - 1), one, ratio))
        low, high = (ratio, high) if work > wanted else (low, ratio)
    _, best, ratio = min(found, key=lambda one: one[0])
    return best, ratio
