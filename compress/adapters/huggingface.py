"""Hugging Face's `ViTForImageClassification`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from compress.adapters.named import taken
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
    arch = _arch(model.config)
    return arch, taken(model, arch, next(FAMILY.namings(arch)), _state(model))


def _arch(config: Any) -> Arch:
    if config.hidden_act not in MLPS:
        known = ", ".join(MLPS)
        raise InputError(f"this ViTForImageClassification has an MLP with {config.hidden_act}; described are {known}")
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise InputError(f"images of {config.image_size} in patches of {config.patch_size} are not square")
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
    start = (Patch(width, config.patch_size), ClassToken(), Position())
    blocks = (*start, *[block] * config.num_hidden_layers, Head(config.num_labels, pool="token", eps=eps))
    return Arch(config.image_size, config.num_channels, blocks)


def _state(model: ViTForImageClassification) -> dict[str, Tensor]:
    """The weights under timm's names: q, k and v in one, with biases of 0 where there are none."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for i in range(model.config.num_hidden_layers):
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
