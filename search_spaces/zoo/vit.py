"""DeiT Ti, S and B (arXiv 2012.12877, table 1), and AS-ViT's pruned ones (arXiv 2209.13802)."""

import dataclasses
import math
from collections.abc import Iterator

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, AttentionPool, BlockSpec, ClassToken, Head, Norm, Patch, Position, TokenPrune
from search_spaces.errors import InputError
from search_spaces.states import Tokens
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY", "pruned_at", "vit"]

DEPTH, HEAD_DIM, EPS = 12, 64, 1e-6
HEADS = {"tiny": 3, "small": 6, "base": 12}
LOCATIONS = (4, 7, 10)  # blocks before which AS-ViT prunes
SHARE = 0.7  # of the patches that reach a location, what stays


def vit(heads: int, locations: tuple[int, ...] = ()) -> Arch:
    """A ViT with patches of 16 and a class token, pruned before the blocks `locations`."""
    width = heads * HEAD_DIM
    block = MB3D(heads, HEAD_DIM, HEAD_DIM, residual="plain", bias=False, eps=EPS)
    start: tuple[BlockSpec, ...] = (Patch(width), ClassToken(), Position())
    dense = Arch(224, 3, (*start, *[block] * DEPTH, Head(1000, pool="token", eps=EPS)))
    return pruned_at(dense, locations) if locations else dense


def pruned_at(arch: Arch, locations: tuple[int, ...]) -> Arch:
    """A ViT that drops patches by thresholds before the blocks `locations`, counted from 0, and nowhere else.

    Raises:
        InputError: the locations are not some of its blocks, in order, each behind another block.
    """
    count = sum(isinstance(spec, MB3D) for spec in arch.blocks)
    if not locations or list(locations) != sorted({i for i in locations if 0 < i < count}):
        raise InputError(f"locations are blocks from 1 to {count - 1} in rising order, got {locations}")
    blocks: list[BlockSpec] = []
    number = left = 0
    for spec, state in arch.steps():
        if isinstance(spec, MB3D) and number in locations:
            assert isinstance(state, Tokens)
            left += 1
            blocks.append(TokenPrune(round(math.prod(state.grid) * SHARE**left), adaptive=True))
        number += isinstance(spec, MB3D)
        blocks += [] if isinstance(spec, TokenPrune) else [spec]
    return dataclasses.replace(arch, blocks=tuple(blocks))


def _namings(arch: Arch) -> Iterator[Naming]:
    """timm's, with AS-ViT's thresholds: scores there, multiples of the mean score here."""
    head = arch.blocks[-1]
    assert isinstance(head, Head)
    at = {position: number for number, position in enumerate(_blocks(arch))}
    found: dict[str, Entry] = {}
    for place, shape in places(arch).items():
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec = arch.blocks[position]
        if isinstance(spec, Patch):
            found[f"patch_embed.{name}"] = Entry(place)
        elif isinstance(spec, ClassToken):
            found |= _tokens(place, shape[0], distilled=head.distilled and head.pool == "token")
        elif isinstance(spec, Position):
            found["pos_embed"] = Entry(place, lead=1)
        elif isinstance(spec, Norm):
            where = "norm_pre" if position < min(at) else "norm"
            found[f"{where}.{name.removeprefix('norm.')}"] = Entry(place)
        elif isinstance(spec, AttentionPool):
            found[f"attn_pool.{name}"] = Entry(place, lead=2 if name == "latent" else 0)
        elif isinstance(spec, MB3D):
            heads = spec.heads if ".qkv." in place else 0
            found[f"blocks.{at[position]}.{name.replace('token_mixer.', 'attn.')}"] = Entry(place, heads=heads)
        elif isinstance(spec, TokenPrune):
            state = arch.states[position]
            assert isinstance(state, Tokens)
            patches = math.prod(state.grid)
            found[f"score_predictor.{arch.locations.index(position)}.keep_threshold"] = Entry(place, scale=patches)
        else:
            found[name.replace("norm.", "fc_norm.") if head.mean_first else name] = Entry(place)
    yield found


def _blocks(arch: Arch) -> list[int]:
    """Positions of the transformer blocks."""
    return [position for position, spec in enumerate(arch.blocks) if isinstance(spec, MB3D)]


def _tokens(place: str, count: int, distilled: bool) -> Naming:
    """Class token, then distillation token, then registers."""
    names = ["cls_token", *(["dist_token"] if distilled else [])]
    found = {name: Entry(place, lead=1, rows=(row, row + 1)) for row, name in enumerate(names)}
    return found | ({"reg_token": Entry(place, lead=1, rows=(len(names), count))} if count > len(names) else {})


FAMILY = Family(
    {
        **{f"deit_{size}_patch16_224": vit(heads) for size, heads in HEADS.items()},
        **{f"asvit_deit_{size}": vit(heads, LOCATIONS) for size, heads in HEADS.items()},
    },
    _namings,
)
