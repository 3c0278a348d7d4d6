"""The spaces of plain ViTs that ship, by image size."""

from search_spaces.spaces.vit import Vit

__all__ = ["vit", "vit_digits"]


def vit_digits(classes: int = 10) -> Vit:
    """64 or 48 pixels in patches of 8; small enough to search on two CPU cores in minutes."""
    return Vit(
        "vit_digits",
        image_size=(64, 48),
        patch=8,
        widths=(32, 48, 64),
        depths=(2, 3, 4, 5, 6),
        shares=(1, 0.5),
        key_dims=(16, 8),
        value_dim=16,
        ratios=(1, 2, 3),
        locations=(1, 3),
        keeps=(48, 32, 16),
        classes=classes,
    )


def vit(classes: int = 1000, image_size: tuple[int, ...] = (224, 160)) -> Vit:
    """DeiT-Ti, S and B, AS-ViT's networks on them, and what lies between: patches of 16, heads 64 wide.

    Kept patches are AS-ViT's .7, .49 and .343 of 196, before blocks 4, 7 and 10, or the 3, 6 and 9 of DynamicViT.
    """
    return Vit(
        "vit",
        image_size=image_size,
        patch=16,
        widths=(192, 384, 576, 768),
        depths=(6, 7, 8, 9, 10, 11, 12),
        shares=(1, 2 / 3),
        key_dims=(64, 32),
        value_dim=64,
        ratios=(2, 3, 4),
        locations=(3, 4, 6, 7, 9, 10),
        keeps=(137, 96, 67),
        classes=classes,
    )
