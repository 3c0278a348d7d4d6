"""The hybrid spaces that ship, by image size."""

from search_spaces.blocks import MB3D
from search_spaces.blocks.mb3d import RECURSIONS
from search_spaces.blocks.mb4d import MIXERS
from search_spaces.grouping import ORDERS
from search_spaces.spaces.hybrid import Hybrid, Stage

__all__ = ["hybrid", "hybrid_digits"]


def hybrid_digits(classes: int = 10) -> Hybrid:
    """64 or 48 pixels, two stages of 16x16 and 8x8 places at 64; small enough to search on two CPU cores in minutes."""
    return Hybrid(
        "hybrid_digits",
        image_size=(64, 48),
        stages=(
            Stage((12, 16, 20, 24), (1, 2), MIXERS),
            Stage(
                (24, 32, 40, 48),
                (1, 2, 3),
                MIXERS,
                MB3D(4, 16, 32),
                ("layer_scale", "coefficients"),
                groups=(1, 2, 4),
                orders=ORDERS,
                loops=(1, 2),
                nll=(0, 1),
                recursions=RECURSIONS,
                inverses=(1, 0),
                locations=(0,),
                keeps=(1, 0.75, 0.4),
            ),
        ),
        mb3d=(0, 1, 2),
        ratios=(1, 2, 3),
        layer_scale=0.1,
        classes=classes,
    )


def hybrid(classes: int = 1000, image_size: int | tuple[int, ...] = (224, 192)) -> Hybrid:
    """Four stages, of which the last three (784, 196 and 49 tokens at 224 pixels) may be 3D; the last may be left out.

    The widths and depths of EfficientFormer-L1, L3 and L7 are among the choices, and the stages of SReT-T and TL: their
    unique blocks, two loops, projections as wide as the tokens, groups of [8, 2], [4, 1] and [1, 1], and heads 32 wide.

    EfficientFormers are among the networks as they are: a v of 128 in the last stage, and the head of a distilled network.
    Every network has that head: as a choice it would double the rows of heads, each of which needs a probe, and a search
    would have nothing to win, because the second classifier is a 2900th of the MACs of EfficientFormer-L1.
    """
    forms = ("coefficients", "layer_scale")

    def stage(
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        heads: int,
        groups: tuple[int, ...],
        locations: tuple[int, ...] = (),
        values: tuple[int, ...] = (),
    ) -> Stage:
        block = MB3D(heads, key_dim=32, value_dim=32)
        orders = ORDERS if max(groups) > 1 else ORDERS[:1]
        inverses = (1, 0) if max(groups) > 1 else (1,)
        keeps = (1, 0.75, 0.5, 0.25) if locations else (1,)
        loops, nll = (1, 2), (0, 1)
        forms_3d = (block, forms, loops, nll, groups, orders, RECURSIONS, inverses)
        return Stage(widths, depths, MIXERS, *forms_3d, locations, keeps, values)

    return Hybrid(
        "hybrid",
        image_size=image_size,
        stages=(
            Stage((32, 48, 64, 96), (1, 2, 3, 4, 6), MIXERS),
            stage((64, 96, 128, 192), (1, 2, 4, 6), 2, (1, 2, 4, 8)),
            stage((128, 224, 320, 384), (1, 2, 5, 6, 12, 18), 4, (1, 2, 4), locations=(2, 5, 8)),
            stage((256, 448, 512, 768), (1, 2, 3, 4, 6, 8, 0), 8, (1,), locations=(0, 2, 4), values=(32, 128)),
        ),
        mb3d=tuple(range(33)),
        ratios=(2, 3, 3.6, 4),
        layer_scale=1e-5,
        classes=classes,
        distilled=True,
    )
