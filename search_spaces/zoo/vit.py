"""DeiT Ti, S and B (arXiv 2012.12877, table 1), and AS-ViT's pruned ones (arXiv 2209.13802)."""

from collections.abc import Mapping

from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Head, Patch, Position, TokenPrune
from search_spaces.errors import InputError

__all__ = ["ARCHS", "released", "vit"]

DEPTH, HEAD_DIM, EPS = 12, 64, 1e-6
HEADS = {"tiny": 3, "small": 6, "base": 12}
LOCATIONS = (4, 7, 10)  # blocks before which AS-ViT prunes
SHARES = (0.7, 0.49, 0.343)  # of the patches that stay there: .7 each time


def vit(heads: int, locations: tuple[int, ...] = ()) -> Arch:
    """A ViT with patches of 16 and a class token, pruned before the blocks `locations`."""
    width = heads * HEAD_DIM
    block = MB3D(heads, HEAD_DIM, HEAD_DIM, residual="plain", bias=False, eps=EPS)
    blocks: list[BlockSpec] = [Patch(width), ClassToken(), Position()]
    for number in range(DEPTH):
        if number in locations:
            blocks.append(TokenPrune(round(196 * SHARES[locations.index(number)]), adaptive=True))
        blocks.append(block)
    return Arch(224, 3, (*blocks, Head(1000, pool="token", eps=EPS)))


ARCHS = {
    **{f"deit_{size}_patch16_224": vit(heads) for size, heads in HEADS.items()},
    **{f"asvit_deit_{size}": vit(heads, LOCATIONS) for size, heads in HEADS.items()},
}

START = {"cls_token": "blocks.1.tokens", "pos_embed": "blocks.2.table"}
START |= {"patch_embed.proj.weight": "blocks.0.proj.weight", "patch_embed.proj.bias": "blocks.0.proj.bias"}


def released(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """A state dict in timm's naming, AS-ViT's thresholds among it, as that of `arch`.

    The release lays out q, k and v over all heads; ours keeps a head's three together. Its thresholds are scores; ours
    multiples of the mean score.

    Raises:
        InputError: an entry that has no place in such a network.
    """
    places = [i for i, spec in enumerate(arch.blocks) if isinstance(spec, MB3D)]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = name.split(".")
        if name in START:
            found[START[name]] = value[0] if name.endswith(("token", "embed")) else value
        elif parts[0] == "blocks" and parts[1].isdecimal() and int(parts[1]) < len(places):
            place = places[int(parts[1])]
            spec, rest = arch.blocks[place], ".".join(parts[2:]).replace("attn.", "token_mixer.")
            assert isinstance(spec, MB3D)
            if "qkv" in rest:
                value = value.reshape(3, spec.heads, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
            found[f"blocks.{place}.{rest}"] = value
        elif parts[0] in ("norm", "head"):
            found[f"blocks.{len(arch.blocks) - 1}.{name}"] = value
        elif parts[0] == "score_predictor" and int(parts[1]) < len(arch.locations):
            state_there = arch.states[arch.locations[int(parts[1])]]
            grid = getattr(state_there, "grid", (0, 0))
            found[f"blocks.{arch.locations[int(parts[1])]}.threshold"] = value * (grid[0] * grid[1])
        else:
            raise InputError(f"{name} has no place in network {arch.id}; give the state dict of this very network")
    return found
