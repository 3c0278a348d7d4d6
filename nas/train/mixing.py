"""Mixed training images: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), as timm draws them."""

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from nas.data.loading import MIX, seeded_globals

__all__ = ["mixed", "mixer"]


def mixer(mixup: float, cutmix: float, classes: int) -> Mixup:
    """What mixes batches: mixup, CutMix or, with equal odds, either, by shares from Beta(alpha, alpha); an alpha of 0 is off.

    Labels are mixed without smoothing, which the loss adds: in either order they come to the same.
    """
    return Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes)


def mixed(images: Tensor, labels: Tensor, mix: Mixup, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W), each mixed with another of the batch, and the shares of the classes in each (B, classes).

    The draws depend on seed and step alone. Of an odd batch the last image stays as it is, because timm mixes pairs.
    """
    paired = len(labels) // 2 * 2
    with seeded_globals(seed, step, MIX):
        pairs, shares = mix(images[:paired].clone(), labels[:paired])
    rest = mixup_target(labels[paired:], mix.num_classes)
    return torch.cat([pairs, images[paired:]]), torch.cat([shares, rest])
