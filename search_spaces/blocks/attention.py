"""Self-attention on tokens, whole or cut into groups, with an optional position bias."""

import torch
from torch import Tensor, nn

from search_spaces.grouping import arrangement, inverse

__all__ = ["Attention", "Cut", "offset_index"]


def offset_index(grid: tuple[int, int]) -> Tensor:
    """(N, N) index of the absolute offset |dy| * width + |dx| between every two places of a grid; on the CPU."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device="cpu"), torch.arange(grid[1], device="cpu"), indexing="ij"
    )
    y, x = rows.flatten(), columns.flatten()
    return (y[:, None] - y[None, :]).abs() * grid[1] + (x[:, None] - x[None, :]).abs()


class Cut(nn.Module):
    """How one loop of a block cuts its N tokens into groups; all tables are buffers.

    `inverse` puts the tokens back where they were; without it the branch keeps the groups' order.
    """

    bias_index: Tensor
    order: Tensor
    back: Tensor

    def __init__(self, grid: tuple[int, int], groups: int, order: str, restore: bool, seed: int) -> None:
        super().__init__()
        self.groups, self.moves, self.restore = groups, order != "contiguous", restore
        tokens = arrangement(grid[0] * grid[1], groups, order, seed)
        if self.moves:
            self.register_buffer("order", tokens)
            self.register_buffer("back", inverse(tokens), persistent=False)
        members = tokens.reshape(groups, -1)
        index = offset_index(grid)[members[:, :, None], members[:, None, :]]
        self.register_buffer("bias_index", index, persistent=False)

    def gather(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B * groups, N / groups, C)."""
        x = x[:, self.order] if self.moves else x
        return x.reshape(-1, x.shape[1] // self.groups, x.shape[2]) if self.groups > 1 else x

    def scatter(self, x: Tensor) -> Tensor:
        """(B * groups, N / groups, C) -> (B, N, C)."""
        x = x.reshape(-1, x.shape[1] * self.groups, x.shape[2]) if self.groups > 1 else x
        return x[:, self.back] if self.moves and self.restore else x


class Attention(nn.Module):
    """Multi-head self-attention on (B, N, C) whose q, k and v widths are free of C; weights do not depend on the groups.

    The joint projection keeps each head's q, k and v together, so the first heads are its leading rows.
    """

    def __init__(
        self, channels: int, heads: int, key_dim: int, value_dim: int, places: int | None, cuts: list[Cut]
    ) -> None:
        """`places` is the number of offsets with a learned bias, None for no bias; one of `cuts` is used in each call."""
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.qkv = nn.Linear(channels, heads * (2 * key_dim + value_dim))
        self.proj = nn.Linear(heads * value_dim, channels)
        self.attention_biases = None if places is None else nn.Parameter(torch.zeros(heads, places))
        self.cuts = nn.ModuleList(cuts)

    def forward(self, x: Tensor, loop: int = 0) -> Tensor:
        cut = self.cuts[loop]
        assert isinstance(cut, Cut)
        x = cut.gather(x)
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        logits = (q * self.key_dim**-0.5) @ k.transpose(-2, -1)
        if self.attention_biases is not None:
            logits = self._biased(logits, cut)
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, self.heads * self.value_dim)
        out: Tensor = self.proj(cut.scatter(mixed))
        return out

    def _biased(self, logits: Tensor, cut: Cut) -> Tensor:
        """Logits (B * groups, heads, n, n) plus the bias of each pair's offset."""
        assert self.attention_biases is not None
        if cut.groups == 1:
            return logits + self.attention_biases[:, cut.bias_index[0]]
        bias = self.attention_biases[:, cut.bias_index].transpose(0, 1)  # (groups, heads, n, n)
        batch, heads, members, _ = logits.shape
        return (logits.reshape(-1, cut.groups, heads, members, members) + bias).reshape(batch, heads, members, members)
