"""EfficientFormer L1, L3 and L7 (arXiv 2206.01191, table 1 and appendix)."""

from collections.abc import Iterator
from itertools import pairwise

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, AttentionEmbed, BlockSpec, Embed, Head, Stem
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY", "numbered"]


def _arch(depths: tuple[int, ...], widths: tuple[int, ...], mb3d: int) -> Arch:
    """Four stages whose last `mb3d` blocks are 3D."""
    kinds: list[BlockSpec] = [MB4D()] * (sum(depths) - mb3d) + [MB3D()] * mb3d
    bounds = [0, *(sum(depths[: stage + 1]) for stage in range(len(depths)))]
    blocks: list[BlockSpec] = []
    for stage, (start, end) in enumerate(pairwise(bounds)):
        blocks += [Embed(widths[stage]) if stage else Stem(widths[0]), *kinds[start:end]]
    return Arch(224, 3, (*blocks, Head(1000, distilled=True)))


AUTHORS_STEM = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
AUTHORS = {"ls1.gamma": "layer_scale_1", "ls2.gamma": "layer_scale_2"}


def _namings(arch: Arch) -> Iterator[Naming]:
    """timm's, then the authors' own; both count the reshape before the first 3D block as a block."""
    timm: dict[str, Entry] = {}
    authors: dict[str, Entry] = {}
    stages = numbered(arch)
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec, (stage, number) = arch.blocks[position], stages[position]
        if isinstance(spec, Stem):
            part, _, leaf = name.partition(".")
            theirs, own = f"stem.{name}", f"patch_embed.{AUTHORS_STEM[part]}.{leaf}"
        elif isinstance(spec, Embed | AttentionEmbed):
            theirs = f"stages.{stage}.downsample.{name}"
            own = f"network.{2 * stage - 1}.{name.replace('conv.', 'proj.')}"
        elif isinstance(spec, Head):
            theirs, own = name, name.replace("head_dist", "dist_head")
        else:
            theirs = f"stages.{stage}.blocks.{number}.{name}"
            own = f"network.{2 * stage}.{number}.{AUTHORS.get(name, name)}"
        timm[theirs] = authors[own] = Entry(place)
    yield from (timm, authors)


def numbered(arch: Arch) -> list[tuple[int, int]]:
    """The stage of each block, and its number there in the releases."""
    found: list[tuple[int, int]] = []
    stage, number = 0, 0
    for before, spec in pairwise((None, *arch.blocks)):
        if isinstance(spec, Embed | AttentionEmbed):
            stage, number = stage + 1, 0
        elif isinstance(spec, MB3D) and not isinstance(before, MB3D):
            number += 1  # the reshape
        found.append((stage, number))
        number += not isinstance(spec, Stem | Embed | AttentionEmbed)
    return found


FAMILY = Family(
    {
        "efficientformer_l1": _arch((3, 2, 6, 4), (48, 96, 224, 448), 1),
        "efficientformer_l3": _arch((4, 4, 12, 6), (64, 128, 320, 512), 4),
        "efficientformer_l7": _arch((6, 6, 18, 8), (96, 192, 384, 768), 8),
    },
    _namings,
    tables=("attention_bias_idxs",),
)
