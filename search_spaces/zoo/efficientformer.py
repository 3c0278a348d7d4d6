"""EfficientFormer L1, L3 and L7 (arXiv 2206.01191, table 1 and appendix), and what their released weights are called here."""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, AttentionEmbed, BlockSpec, Embed, Head, Stem
from search_spaces.errors import InputError
from search_spaces.skeleton import skeleton
from search_spaces.states import Map

__all__ = ["ARCHS", "carried", "released"]


def _arch(depths: tuple[int, ...], widths: tuple[int, ...], mb3d: int) -> Arch:
    """Four stages whose last `mb3d` blocks are 3D."""
    kinds: list[BlockSpec] = [MB4D()] * (sum(depths) - mb3d) + [MB3D()] * mb3d
    bounds = [0, *(sum(depths[: stage + 1]) for stage in range(len(depths)))]
    blocks: list[BlockSpec] = []
    for stage, (start, end) in enumerate(pairwise(bounds)):
        blocks += [Embed(widths[stage]) if stage else Stem(widths[0]), *kinds[start:end]]
    return Arch(224, 3, (*blocks, Head(1000, distilled=True)))


ARCHS = {
    "efficientformer_l1": _arch((3, 2, 6, 4), (48, 96, 224, 448), 1),
    "efficientformer_l3": _arch((4, 4, 12, 6), (64, 128, 320, 512), 4),
    "efficientformer_l7": _arch((6, 6, 18, 8), (96, 192, 384, 768), 8),
}

AUTHORS = (  # the authors' names, as patterns, and timm's
    (r"^patch_embed\.0\.", "stem.conv1."),
    (r"^patch_embed\.1\.", "stem.norm1."),
    (r"^patch_embed\.3\.", "stem.conv2."),
    (r"^patch_embed\.4\.", "stem.norm2."),
    (r"\.layer_scale_(\d)$", r".ls\1.gamma"),
    (r"^dist_head\.", "head_dist."),
)


def released(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """A state dict in the authors' naming or timm's as that of `arch`; index tables, which networks make anew, are left out.

    Raises:
        InputError: an entry that has no place in such a network.
    """
    return carried(state, arch, _in_timm)


def _in_timm(name: str) -> str:
    """The authors' name of an entry as timm's, which stays as it is."""
    for theirs, timm in AUTHORS:
        name = re.sub(theirs, timm, name)
    numbered = re.fullmatch(r"network\.(\d+)\.(.*)", name)  # stages and what halves the map before them, in turn
    if numbered is None:
        return name
    stage, blocks = divmod(int(numbered[1]) + 1, 2)
    if blocks:
        return f"stages.{stage}.blocks.{numbered[2]}"
    return f"stages.{stage}.downsample.{re.sub(r'^proj[.]', 'conv.', numbered[2])}"


def carried(state: Mapping[str, Tensor], arch: Arch, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """A released state dict as that of `arch`; `rename` gives an entry its block's name in timm and its own name in our block.

    Raises:
        InputError: an entry that has no place in such a network.
    """
    places, known = _places(arch), skeleton(arch, torch.device("cpu"), moments=True).state_dict().keys()
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        learned = name.replace("attention_bias_idxs", "attention_biases")  # an index table belongs to a bias
        renamed = rename(learned)
        place = next((place for place in places if renamed.startswith(place)), "")
        own = places[place] + renamed.removeprefix(place) if place else ""
        if own not in known:
            raise InputError(f"{name} has no place in network {arch.id}; give the state dict of this very network")
        if learned == name:
            found[own] = value
    return found


def _places(arch: Arch) -> dict[str, str]:
    """How names of a block's entries begin in timm, and here. Laying the map out as tokens takes a number there."""
    found: dict[str, str] = {}
    stage = number = 0
    for position, (spec, state) in enumerate(arch.steps()):
        own = f"blocks.{position}."
        if isinstance(spec, Stem):
            found["stem."] = own
        elif isinstance(spec, Embed | AttentionEmbed):
            stage, number = stage + 1, 0
            found[f"stages.{stage}.downsample."] = own
        elif isinstance(spec, Head):
            found |= {f"{part}.": f"{own}{part}." for part in ("norm", "head", "head_dist")}
        else:
            number += isinstance(spec, MB3D) and isinstance(state, Map)
            found[f"stages.{stage}.blocks.{number}."] = own
            number += 1
    return found
