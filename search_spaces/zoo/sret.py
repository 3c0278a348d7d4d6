"""SReT-T, LT and S (arXiv 2111.05297, tables 1 and 8; "TL" in the paper is "LT" in the release)."""

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, Embed, Head, Position, Stem

__all__ = ["ARCHS"]

UNIQUE = (2, 5, 3)  # blocks of each stage, each applied twice in a row
GROUPS = ((8, 2), (4, 1), (1, 1))  # of the two loops


def _arch(width: int, heads: int, ratio: float, nll: float) -> Arch:
    """Three stages that double the width; tokens move only where a later loop has several groups."""
    blocks: list[BlockSpec] = [Stem(width, convs=3), Position()]
    dim = width // heads
    for stage, (unique, groups) in enumerate(zip(UNIQUE, GROUPS, strict=True)):
        if stage:
            blocks.append(Embed(width << stage, "depthwise", norm=False))
        cut = groups if max(groups) > 1 else ()
        orders = tuple("permuted" if loop and count > 1 else "contiguous" for loop, count in enumerate(cut))
        block = MB3D(
            heads << stage,
            dim,
            dim,
            ratio,
            residual="coefficients",
            bias=False,
            loops=2,
            nll=nll,
            groups=cut,
            orders=orders,
        )
        blocks += [block] * unique
    return Arch(224, 3, (*blocks, Head(1000, mean_first=True)))


ARCHS = {
    "sret_t": _arch(64, 2, 3.6, 1),
    "sret_lt": _arch(64, 2, 4, 1),
    "sret_s": _arch(126, 3, 3, 2),
}
