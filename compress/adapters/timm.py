"""timm's `VisionTransformer`, in all the forms that differ by constructor arguments."""

from dataclasses import replace
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, GluMlp, LayerNorm, LayerNormFp32, Mlp, PatchEmbed
from timm.layers.layer_scale import LayerScale
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from compress.adapters.named import check_parts, layer, refused, taken
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, AttentionPool, BlockSpec, ClassToken, Head, Norm, Patch, Position
from search_spaces.errors import InputError
from search_spaces.zoo.released import Naming, places
from search_spaces.zoo.vit import FAMILY

__all__ = ["read"]

NOTHING = (nn.Identity, nn.Dropout)  # in eval mode
NORMS = (nn.LayerNorm, LayerNorm, LayerNormFp32)  # which compute the same


def read(model: nn.Module) -> tuple[Arch, dict[str, Tensor]]:
    """See `compress.from_module`."""
    if not isinstance(model, VisionTransformer):
        raise InputError(f"of timm's networks VisionTransformer is described, and {type(model).__name__} is none")
    check_parts(model, "timm")
    arch = _arch(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    naming = _naming(model, arch)
    for name, entry in naming.items():
        if name not in state and name.endswith(".bias"):  # a layer without one
            state[name] = torch.zeros(entry.shape(places(arch)[entry.place]))
    return arch, taken(model, arch, naming, state)


def _naming(model: VisionTransformer, arch: Arch) -> Naming:
    """Names that timm gives to the network's weights, by what this model has of what an Arch does not tell."""
    naming = dict(next(FAMILY.namings(arch)))
    if not model.has_class_token and model.num_prefix_tokens:
        naming["reg_token"] = replace(naming.pop("cls_token"), rows=None)
    for part in ("weight", "bias"):
        if f"norm.{part}" in naming and isinstance(model.norm, NOTHING):
            naming[f"fc_norm.{part}"] = naming.pop(f"norm.{part}")
    return naming


def _arch(model: VisionTransformer) -> Arch:
    patches = model.patch_embed
    if type(patches) is not PatchEmbed:
        raise refused(model, f"an embedding {type(patches).__name__}")
    if not isinstance(patches.norm, NOTHING):
        raise refused(model, "a norm in its embedding (embed_norm_layer)")
    if patches.img_size is None:
        raise refused(model, "images of no size", "give it img_size")
    if not len(model.blocks):
        raise refused(model, "no blocks")
    (side, other), (size, width) = patches.img_size, patches.patch_size
    if side != other or size != width:
        raise refused(model, f"images of {side} x {other} or patches of {size} x {width}, not square")
    embed = layer(model, patches.proj, nn.Conv2d, "its embedding")
    blocks: list[BlockSpec] = [Patch(embed.out_channels, size, bias=embed.bias is not None)]
    prefix = model.num_prefix_tokens
    table = [] if model.pos_embed is None else [Position()]
    tokens = [ClassToken(prefix)] if prefix else []
    blocks += [*table, *tokens] if model.no_embed_class else [*tokens, *table]
    blocks += [_norm(model, model.norm_pre)] if not isinstance(model.norm_pre, NOTHING) else []
    blocks += [_block(model, block) for block in model.blocks]
    return Arch(side, embed.in_channels, (*blocks, *_head(model)))


def _norm(model: nn.Module, norm: nn.Module) -> Norm:
    return Norm(_eps(model, norm))


def _eps(model: nn.Module, norm: nn.Module) -> float:
    if type(norm) not in NORMS:
        raise refused(model, f"a norm {type(norm).__name__} that is no LayerNorm")
    assert isinstance(norm, nn.LayerNorm)
    if norm.weight is None or norm.bias is None:
        raise refused(model, "a LayerNorm without weight or bias")
    return norm.eps


def _block(model: VisionTransformer, block: nn.Module) -> MB3D:
    if type(block) is not Block:
        raise refused(model, f"blocks {type(block).__name__}")
    attention: Any = block.attn
    if type(attention) is not Attention or getattr(attention, "gate", None) is not None:
        raise refused(model, f"attention {type(attention).__name__} or a gate on it")
    if not isinstance(attention.norm, NOTHING):
        raise refused(model, "a norm on what attention gives (scale_attn_norm)")
    eps = _eps(model, block.norm1)
    normed = not isinstance(attention.q_norm, NOTHING)
    inner = [attention.q_norm, attention.k_norm] if normed else []
    if any(_eps(model, norm) != eps for norm in (block.norm2, *inner)):
        raise refused(model, "norms of unlike eps in a block")
    scaled = [isinstance(scale, LayerScale) for scale in (block.ls1, block.ls2)]
    if any(scaled) != all(scaled):
        raise refused(model, "one layer scale in a block of two branches")
    channels = layer(model, attention.qkv, nn.Linear, "queries, keys and values").in_features
    hidden, form = _mlp(model, block.mlp)
    width = int(attention.head_dim)
    return MB3D(
        int(attention.num_heads),
        width,
        width,
        hidden / channels,
        residual="layer_scale" if all(scaled) else "plain",
        bias=False,
        eps=eps,
        qk_norm=normed,
        mlp=form,
    )


def _mlp(model: nn.Module, mlp: Any) -> tuple[int, str]:
    """Hidden neurons of an MLP, and its form."""
    if type(mlp) not in (Mlp, GluMlp) or not isinstance(mlp.norm, NOTHING):
        raise refused(model, f"an MLP {type(mlp).__name__} or a norm in it (scale_mlp_norm)")
    hidden, act = layer(model, mlp.fc2, nn.Linear, "the second layer of an MLP").in_features, mlp.act
    name = type(act).__name__
    if type(mlp) is GluMlp:
        if mlp.gate_last or name != "SiLU":
            raise refused(model, f"a gated MLP of {name} or with the gate last")
        return hidden, "swiglu"
    if name in ("GELU", "GELUTanh"):
        tanh = name == "GELUTanh" or getattr(act, "approximate", "none") == "tanh"
        return hidden, "gelu_tanh" if tanh else "gelu"
    if name in ("QuickGELU", "QuickGELUActivation"):
        return hidden, "quick_gelu"
    if name == "SiLU":
        return hidden, "silu"
    raise refused(model, f"an MLP with {name}")


def _head(model: VisionTransformer) -> list[BlockSpec]:
    distilled = isinstance(model, VisionTransformerDistilled)
    classes = (
        0 if isinstance(model.head, NOTHING) else layer(model, model.head, nn.Linear, "its classifier").out_features
    )
    norm, pooled = model.norm, model.fc_norm
    if model.attn_pool is not None:
        return _pooling_head(model, classes)
    if model.global_pool not in ("token", "avg"):
        raise refused(model, f"a head that pools {model.global_pool!r}", "described are token, avg and map")
    if model.pool_include_prefix:
        raise refused(model, "a head that pools class tokens with the patches")
    before, after = (not isinstance(one, NOTHING) for one in (norm, pooled))
    if before and after:
        raise refused(model, "a norm before the pooling and another after it")
    if distilled and not classes:
        raise refused(model, "two class tokens and no classifier")
    pool = "token" if model.global_pool == "token" else "mean"
    if not before and not after:
        return [Head(classes, pool=pool, norm="none", distilled=distilled)]
    eps = _eps(model, norm if before else pooled)
    return [Head(classes, distilled, mean_first=after and pool == "mean", pool=pool, eps=eps)]


def _pooling_head(model: VisionTransformer, classes: int) -> list[BlockSpec]:
    """Of SigLIP: all tokens normed, then pooled by attention."""
    pool: Any = model.attn_pool
    if type(pool) is not AttentionPoolLatent:
        raise refused(model, f"a pooling {type(pool).__name__}")
    if pool.latent_len != 1 or pool.pos_embed is not None:
        raise refused(model, "a pooling of several queries or with positions")
    if not all(isinstance(part, NOTHING) for part in (pool.q_norm, pool.k_norm)):
        raise refused(model, "norms in its pooling")
    if not isinstance(model.fc_norm, NOTHING):
        raise refused(model, "a norm after its pooling (fc_norm)")
    if isinstance(pool.q, NOTHING) or model.pool_include_prefix:
        raise refused(model, "class tokens in its pooling, or a query without projection")
    hidden, form = _mlp(model, pool.mlp)
    channels = pool.proj.in_features
    first: list[BlockSpec] = [] if isinstance(model.norm, NOTHING) else [_norm(model, model.norm)]
    pooling = AttentionPool(int(pool.num_heads), hidden / channels, _eps(model, pool.norm), form)
    return [*first, pooling, Head(classes, norm="none")]
