"""Parts that residual blocks share: the per-channel layer scale and the two forms of the feed-forward branch."""

import torch
from torch import Tensor, nn

__all__ = ["ConvMlp", "LayerScale", "Mlp", "hidden_width"]


def hidden_width(channels: int, ratio: float) -> int:
    """Hidden channels of a feed-forward branch.

    Raises:
        ValueError: `ratio * channels` is not a whole number of at least one.
    """
    hidden = channels * ratio
    if hidden < 1 or hidden != int(hidden):
        raise ValueError(f"FFN ratio times width must be a whole number, got {ratio} x {channels}")
    return int(hidden)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT, arXiv 2103.17239); maps and tokens alike."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma[:, None, None] if x.ndim == 4 else self.gamma)


class ConvMlp(nn.Module):
    """1x1 conv - BN - GELU - 1x1 conv - BN on a map (B, C, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.fc1(x)))
        out: Tensor = self.norm2(self.fc2(x))
        return out


class Mlp(nn.Module):
    """Linear - GELU - linear on tokens (B, N, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out
