"""The hybrid spaces that ship, by image size."""

from search_spaces.blocks import MB3D
from search_spaces.spaces.hybrid import Hybrid, Stage

__all__ = ["hybrid", "hybrid_digits"]

ORDERS = ("contiguous", "strided", "permuted")


def hybrid_digits(classes: int = 10) -> Hybrid:
    """64 pixels, two stages of 16x16 and 8x8 places; small enough to search on two CPU cores in minutes."""
    return Hybrid(
        "hybrid_digits",
        image_size=64,
        stages=(Stage((12, 16, 20, 24), (1, 2)), Stage((24, 32, 40, 48), (1, 2, 3), block=MB3D(4, 16, 32))),
        mb3d=(0, 1, 2, 3),
        ratios=(1, 2, 3),
        layer_scale=0.1,
        classes=classes,
    )


def hybrid(classes: int = 1000, image_size: int = 224) -> Hybrid:
    """Four stages, of which the last three (784, 196 and 49 tokens at 224 pixels) may be 3D.

    The widths and depths of EfficientFormer-L1, L3 and L7 are among the choices, and the stages of SReT-T and TL: their
    unique blocks, two loops, projections as wide as the tokens, groups of [8, 2], [4, 1] and [1, 1], and heads 32 wide.
    """
    mixers, forms = ("pool", "depthwise"), ("coefficients", "layer_scale")

    def block(heads: int) -> MB3D:
        return MB3D(heads, key_dim=32, value_dim=32)

    return Hybrid(
        "hybrid",
        image_size=image_size,
        stages=(
            Stage((32, 48, 64, 96), (1, 2, 3, 4, 6), mixers),
            Stage(
                (64, 96, 128, 192),
                (1, 2, 4, 6),
                mixers,
                block(2),
                forms,
                groups=(1, 2, 4, 8),
                orders=ORDERS,
                loops=(1, 2),
                nll=(0, 1),
            ),
            Stage(
                (128, 224, 320, 384),
                (1, 2, 5, 6, 12, 18),
                mixers,
                block(4),
                forms,
                groups=(1, 2, 4),
                orders=ORDERS,
                loops=(1, 2),
                nll=(0, 1),
            ),
            Stage((256, 448, 512, 768), (1, 2, 3, 4, 6, 8), mixers, block(8), forms, loops=(1, 2), nll=(0, 1)),
        ),
        mb3d=tuple(range(33)),
        ratios=(2, 3, 3.6, 4),
        layer_scale=1e-5,
        classes=classes,
    )
