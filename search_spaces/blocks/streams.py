"""Parts of networks of two streams, a map and a few tokens: bridges both ways, the tokens' own block, dynamic ReLU (arXiv 2108.05895, section 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from search_spaces.blocks.residual import Mlp
from search_spaces.states import Streams

__all__ = [
    "BRIDGE_HEADS",
    "FORMER_HEADS",
    "DynamicRelu",
    "Former",
    "HeadAttention",
    "Pair",
    "ToFormer",
    "ToMobile",
    "Work",
]

BRIDGE_HEADS, FORMER_HEADS = 2, 4

Pair = tuple[Tensor, Tensor]
"""A map (B, C, H, W) and the tokens (B, M, d) beside it."""


class Work(NamedTuple):
    """What a part costs in closed form."""

    macs: int
    params: int


class HeadAttention(nn.Module):
    """Softmax attention whose heads are equal runs of channels, in the layout of maps: (B, C, n), (B, C, m), (B, C, m) -> (B, C, n)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, channels, count = q.shape
        q, k, v = (x.reshape(batch, self.heads, channels // self.heads, -1) for x in (q, k, v))
        weights = (q.transpose(2, 3) @ k * self.scale).softmax(-1)
        read: Tensor = v @ weights.transpose(2, 3)
        return read.reshape(batch, channels, count)

    @staticmethod
    def macs(channels: int, queries: int, keys: int) -> int:
        """Of both products."""
        return 2 * channels * queries * keys


class ToFormer(nn.Module):
    """Mobile → Former: (B, C, H, W) and (B, M, d) -> (B, M, d), the tokens with what they read from the map.

    The map is keys and values as it is. What a token reads is gated by channel, `2 hsig(Linear(z))`, as in the release.
    """

    def __init__(self, state: Streams) -> None:
        super().__init__()
        self.q = nn.Linear(state.width, state.channels)
        self.gate = nn.Linear(state.width, state.channels)
        self.attend = HeadAttention(state.channels, BRIDGE_HEADS)
        self.proj = nn.Linear(state.channels, state.width)
        self.norm = nn.LayerNorm(state.width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        places = x.flatten(2)
        read = self.attend(self.q(z).transpose(1, 2), places, places).transpose(1, 2)
        out: Tensor = self.norm(z + self.proj(read * (2 * nn.functional.hardsigmoid(self.gate(z)))))
        return out

    @staticmethod
    def work(state: Streams) -> Work:
        """Of the bridge on this map and these tokens."""
        c, d, m = state.channels, state.width, state.count
        attention = HeadAttention.macs(c, m, state.map.positions)
        return Work(3 * m * c * d + attention, 2 * (d + 1) * c + (c + 1) * d + 2 * d)


class Former(nn.Module):
    """(B, M, d) -> (B, M, d): self-attention whose keys and values are the tokens as they are, and an MLP; a LN after either."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.attend = HeadAttention(width, FORMER_HEADS)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        own = z.transpose(1, 2)
        z = self.norm1(z + self.proj(self.attend(self.q(z).transpose(1, 2), own, own).transpose(1, 2)))
        out: Tensor = self.norm2(z + self.mlp(z))
        return out

    @staticmethod
    def work(state: Streams) -> Work:
        """Of the tokens' block."""
        d, m = state.width, state.count
        return Work(6 * m * d * d + HeadAttention.macs(d, m, m), 6 * d * d + 9 * d)


class ToMobile(nn.Module):
    """Mobile ← Former: (B, C, H, W) and (B, M, d) -> (B, C, H, W), the map with what its places read from the tokens.

    The map is the queries as it is, and what is read is added to it unprojected.
    """

    def __init__(self, state: Streams) -> None:
        super().__init__()
        self.k = nn.Linear(state.width, state.channels)
        self.v = nn.Linear(state.width, state.channels)
        self.attend = HeadAttention(state.channels, BRIDGE_HEADS)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        read: Tensor = self.attend(x.flatten(2), self.k(z).transpose(1, 2), self.v(z).transpose(1, 2))
        return x + read.reshape(x.shape)

    @staticmethod
    def work(state: Streams) -> Work:
        """Of the bridge on this map and these tokens."""
        c, d, m = state.channels, state.width, state.count
        return Work(2 * m * c * d + HeadAttention.macs(c, state.map.positions, m), 2 * (d + 1) * c)


class DynamicRelu(nn.Module):
    """`max(a1 x, a2 x)` on a map (B, C, H, W), both slopes of each channel told by a token (B, d): a1 in [0, 2], a2 in [-1, 1].

    Dynamic ReLU (arXiv 2003.10027, eq. 4) without intercepts.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width // 4)
        self.fc2 = nn.Linear(width // 4, 2 * channels)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        told = nn.functional.hardsigmoid(self.fc2(self.fc1(token).relu()))
        first, second = (2 * told)[:, :, None, None].chunk(2, 1)
        return torch.maximum(x * first, x * (second - 1))

    @staticmethod
    def work(channels: int, width: int) -> Work:
        """Of the layers that tell the slopes."""
        quarter = width // 4
        return Work(quarter * (width + 2 * channels), (width + 1) * quarter + (quarter + 1) * 2 * channels)
