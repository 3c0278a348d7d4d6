"""Hugging Face's `ViTForImageClassification`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from compress.adapters.named import check_parts, layer, taken
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from search_spaces.zoo.vit import FAMILY

__all__ = ["read"]

MLPS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
"""Names of the library's activations, and ours."""

OUTSIDE = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "classifier": "head",
}
INSIDE = {
    "layernorm_before": "norm1",
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Their names outside of the blocks and inside, and timm's, whose map to ours there is."""


def read(model: nn.Module) -> tuple[Arch, dict[str, Tensor]]:
    """See `compress.from_module`."""
    if not isinstance(model, ViTForImageClassification):
        what = f"of Hugging Face's networks ViTForImageClassification is described, and {type(model).__name__} is none"
        raise InputError(what)
    check_parts(model, "transformers")
    arch = _arch(model)
    return arch, taken(model, arch, next(FAMILY.namings(arch)), _state(model))


def _arch(model: ViTForImageClassification) -> Arch:
    config: Any = model.config
    if config.hidden_act not in MLPS:
        known = ", ".join(MLPS)
        raise InputError(f"this ViTForImageClassification has an MLP with {config.hidden_act}; described are {known}")
    side, size = _side("images", config.image_size), _side("patches", config.patch_size)
    heads, width, eps = config.num_attention_heads, config.hidden_size, config.layer_norm_eps
    block = MB3D(
        heads,
        getattr(config, "head_dim", None) or width // heads,
        getattr(config, "head_dim", None) or width // heads,
        config.intermediate_size / width,
        residual="plain",
        bias=False,
        eps=eps,
        mlp=MLPS[config.hidden_act],
    )
    last: nn.Module = model.classifier  # which may be another than the one that it was built with
    classes = 0 if isinstance(last, nn.Identity) else layer(model, last, nn.Linear, "its classifier").out_features
    start = (Patch(width, size), ClassToken(), Position())
    blocks = (*start, *[block] * len(model.vit.layers), Head(classes, pool="token", eps=eps))
    return Arch(side, config.num_channels, blocks)


def _side(what: str, size: int | Sequence[int]) -> int:
    """Pixels of a side."""
    sides = {size} if isinstance(size, int) else {*size}
    if len(sides) > 1:
        raise InputError(f"this ViTForImageClassification has {what} of {size} pixels; described are square ones")
    return sides.pop()


def _state(model: ViTForImageClassification) -> dict[str, Tensor]:
    """The weights under timm's names: q, k and v in one, with biases of 0 where there are none."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for i in range(len(model.vit.layers)):
        prefix = f"vit.layers.{i}."
        for part in ("weight", "bias"):
            names = [f"{prefix}attention.{one}_proj.{part}" for one in "qkv"]
            if part == "weight" or names[0] in state:
                found[f"blocks.{i}.attn.qkv.{part}"] = torch.cat([state.pop(name) for name in names])
        weight = found[f"blocks.{i}.attn.qkv.weight"]
        found.setdefault(f"blocks.{i}.attn.qkv.bias", weight.new_zeros(len(weight)))
        for theirs, timms in INSIDE.items():
            for part in ("weight", "bias"):
                found[f"blocks.{i}.{timms}.{part}"] = state.pop(f"{prefix}{theirs}.{part}")
    for theirs, timms in OUTSIDE.items():
        for name in [name for name in state if name == theirs or name.rpartition(".")[0] == theirs]:
            found[timms + name.removeprefix(theirs)] = state.pop(name)
    return found | state
