"""Attention between the places of maps, and convolutions with BN around it (EfficientFormerV2, arXiv 2212.08059, section 3)."""

import torch
from torch import Tensor, nn

from search_spaces.blocks.attention import offset_index

__all__ = ["ConvNorm", "GridAttention"]


class ConvNorm(nn.Module):
    """Convolution and BN on a map; where `stride` is 2, odd sides round up."""

    def __init__(self, channels: int, width: int, size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, groups=groups)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class GridAttention(nn.Module):
    """Queries from every `stride`-th place of `grid` attend to all its places; a bias is learned for each head and offset.

    `talking`: 1x1 convolutions over the heads before and after the softmax (Talking-Heads Attention, arXiv 2003.02436).
    Channels are laid out head by head, so the first heads are the leading ones of every weight.
    """

    bias_index: Tensor

    def __init__(self, heads: int, key_dim: int, grid: tuple[int, int], stride: int = 1, talking: bool = False) -> None:
        super().__init__()
        self.heads, self.scale = heads, key_dim**-0.5
        self.attention_biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.talking_logits = nn.Conv2d(heads, heads, 1) if talking else None
        self.talking_weights = nn.Conv2d(heads, heads, 1) if talking else None
        index = offset_index(grid).reshape(*grid, -1)[::stride, ::stride].flatten(0, 1)
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads * key_dim, h, w), (B, heads * key_dim, H, W), (B, heads * value_dim, H, W) -> (B, heads * value_dim, h, w)."""
        batch, _, height, width = q.shape
        q, k, v = (x.reshape(batch, self.heads, x.shape[1] // self.heads, -1) for x in (q, k, v))
        weights = (q.transpose(2, 3) * self.scale) @ k + self.attention_biases[:, self.bias_index]
        weights = weights if self.talking_logits is None else self.talking_logits(weights)
        weights = weights.softmax(-1)
        weights = weights if self.talking_weights is None else self.talking_weights(weights)
        mixed: Tensor = v @ weights.transpose(2, 3)
        return mixed.reshape(batch, -1, height, width)
