"""EfficientFormer L1, L3 and L7 (arXiv 2206.01191, table 1 and appendix)."""

from itertools import pairwise

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, BlockSpec, Embed, Head, Stem

__all__ = ["ARCHS"]


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
