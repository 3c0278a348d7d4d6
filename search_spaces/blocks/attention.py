"""Self-attention on tokens, whole or cut into groups, with an optional position bias."""

from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.blocks.reuse import Relations
from search_spaces.grouping import arrangement, inverse
from search_spaces.merging import proportional
from search_spaces.tokens import Kept, attend, masked_softmax, packed_attention, packed_score, ranks, score

__all__ = ["Attention", "Cut", "offset_index"]


def offset_index(grid: tuple[int, int]) -> Tensor:
    """(N, N) index of the absolute offset |dy| * width + |dx| between every two places of a grid; on the CPU."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device="cpu"), torch.arange(grid[1], device="cpu"), indexing="ij"
    )
    y, x = rows.flatten(), columns.flatten()
    return (y[:, None] - y[None, :]).abs() * grid[1] + (x[:, None] - x[None, :]).abs()


def _between(bias: Tensor, places: Tensor) -> Tensor:
    """(B, heads, n, n) bias between the tokens at `places` (B, n), from that of the grid (heads, N, N), which is symmetric."""
    if len(places) == 1:
        # Rows at a time, twice: ONNX Runtime copies a row four to eight times as fast as its entries. No need to turn it back.
        return bias.index_select(1, places[0]).transpose(1, 2).index_select(1, places[0])[None]
    pairs = places[:, :, None] * bias.shape[-1] + places[:, None, :]
    return bias.flatten(1).index_select(1, pairs.flatten()).reshape(-1, *pairs.shape).transpose(0, 1)


class Cut(nn.Module):
    """How one loop of a block cuts its N tokens into groups; all tables are buffers, that of offsets only where `biased`.

    `inverse` puts the tokens back where they were; without it the branch keeps the groups' order.
    """

    bias_index: Tensor
    order: Tensor
    back: Tensor

    def __init__(self, grid: tuple[int, int], groups: int, order: str, restore: bool, seed: int, biased: bool) -> None:
        super().__init__()
        self.groups, self.moves, self.restore = groups, order != "contiguous", restore
        self.grid, self.biased = grid, biased
        tokens = arrangement(grid[0] * grid[1], groups, order, seed)
        if self.moves:
            self.register_buffer("order", tokens)
        self._derive(tokens)
        hooked: Any = self  # the method has no annotations
        hooked.register_load_state_dict_post_hook(_follow)

    def _derive(self, tokens: Tensor) -> None:
        """The tables that follow from the order (N,), also from one that was loaded with weights."""
        if self.moves:
            self.register_buffer("back", inverse(tokens), persistent=False)
        if self.biased:
            members = tokens.reshape(self.groups, -1)
            index = offset_index(self.grid).to(tokens.device)[members[:, :, None], members[:, None, :]]
            self.register_buffer("bias_index", index, persistent=False)

    def gather(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B * groups, N / groups, C)."""
        x = x[:, self.order] if self.moves else x
        return x.reshape(-1, x.shape[1] // self.groups, x.shape[2]) if self.groups > 1 else x

    def scatter(self, x: Tensor) -> Tensor:
        """(B * groups, N / groups, C) -> (B, N, C)."""
        x = x.reshape(-1, x.shape[1] * self.groups, x.shape[2]) if self.groups > 1 else x
        return x[:, self.back] if self.moves and self.restore else x

    def of_tokens(self, scores: Tensor) -> Tensor:
        """(B * groups, N / groups) scores, each group's its own -> (B, N) in the order of the tokens, of one sum."""
        return self.in_order(scores / self.groups if self.groups > 1 else scores)

    def in_order(self, x: Tensor) -> Tensor:
        """(B * groups, N / groups, ...) -> (B, N, ...) in the order of the tokens."""
        x = x.reshape(-1, x.shape[1] * self.groups, *x.shape[2:]) if self.groups > 1 else x
        return x[:, self.back] if self.moves else x


def _follow(cut: Cut, keys: object) -> None:
    """Derive a cut's tables anew once weights are loaded, which may bring an order of their own."""
    if cut.moves:
        cut._derive(cut.order)


class Attention(nn.Module):
    """Multi-head self-attention on (B, N, C) whose q, k and v widths are free of C; weights do not depend on the groups.

    The joint projection keeps each head's q, k and v together, so the first heads are its leading rows.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        places: int | None,
        cuts: list[Cut],
        prefix: int = 0,
        qk_norm_eps: float | None = None,
        fused: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        """`places` is the number of offsets with a learned bias, None for no bias; one of `cuts` is used in each call.

        `qk_norm_eps`: of the norms of each head's queries and keys (ViT-22B, arXiv 2302.05442, section 2); None for none.

        The first of `prefix` leading tokens, a class token, scores the others; without one all tokens do. `fused`: the last token
        is no patch.
        """
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.prefix = heads, key_dim, value_dim, prefix
        self.patches = slice(prefix, -1 if fused else None)
        self.qkv = nn.Linear(channels, heads * (2 * key_dim + value_dim), bias=qkv_bias)
        self.proj = nn.Linear(heads * value_dim, channels)
        self.attention_biases = None if places is None else nn.Parameter(torch.zeros(heads, places))
        self.cuts = nn.ModuleList(cuts)
        self.q_norm = None if qk_norm_eps is None else nn.LayerNorm(key_dim, eps=qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else nn.LayerNorm(key_dim, eps=qk_norm_eps)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head, from (..., 2 * key width + value width)."""
        q, k, v = torch.split(qkv, [self.key_dim, self.key_dim, self.value_dim], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        loop: int = 0,
        kept: Kept | None = None,
        scored: bool = False,
        keyed: bool = False,
        relations: Relations | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What attention adds to `x`, where `scored` the patches' scores, and where `keyed` their keys; `kept` says what is left of the tokens.

        `relations` are what its logits take from a cascade's stage before, and give to the next; such patches are not scored.
        """
        cut = self.cuts[loop]
        assert isinstance(cut, Cut)
        if kept is not None and kept.lengths is not None:
            return *self._packed(x, cut, kept.lengths, kept.places, scored), None
        mask, places, sizes = (None, None, None) if kept is None else (kept.mask, kept.places, kept.sizes)
        x = cut.gather(x)
        batch, count, _ = x.shape
        q, k, v = self._split(self.qkv(x).reshape(batch, count, self.heads, -1).transpose(1, 2))
        more = proportional(sizes, q.dtype)
        if relations is not None:
            context = self._related(q, k, v, relations)
            weights: Tensor | None = None
        elif self._fuses(mask, scored):
            context = attend(q, k, v, self.key_dim**-0.5, more)
            weights = self._weights(q[:, :, :1], k, cut, mask, places, more) if scored else None  # the class token's
        else:
            weights = self._weights(q, k, cut, mask, places, more)
            context = weights @ v
        mixed = context.transpose(1, 2).reshape(batch, count, self.heads * self.value_dim)
        out: Tensor = self.proj(cut.scatter(mixed))
        keys = cut.in_order(k.mean(1))[:, self.patches] if keyed else None
        if not scored:
            return out, None, keys
        assert weights is not None
        scores = score(weights, context, 0 if self.prefix else None, mask)
        return out, cut.of_tokens(scores)[:, self.patches], keys

    def _related(self, q: Tensor, k: Tensor, v: Tensor, relations: Relations) -> Tensor:
        """(B, heads, N, d) by logits that relations are added to, told where someone asks for them: only then is each of them written out."""
        if relations.told is None and self._fuses(None, scored=False):
            return attend(q, k, v, self.key_dim**-0.5, relations.added)
        logits = (q * self.key_dim**-0.5) @ k.transpose(-2, -1)
        logits = logits if relations.added is None else logits + relations.added
        if relations.told is not None:
            relations.told.append(logits)
        context: Tensor = logits.softmax(-1) @ v
        return context

    def _weights(
        self, q: Tensor, k: Tensor, cut: Cut, mask: Tensor | None, places: Tensor | None, more: Tensor | None
    ) -> Tensor:
        """Of some queries (B * groups, heads, m, d) to all keys; logits get `more`, (B, 1, 1, n)."""
        logits = (q * self.key_dim**-0.5) @ k.transpose(-2, -1)
        if self.attention_biases is not None:
            logits = self._biased(logits, self.attention_biases, cut, places)
        logits = logits if more is None else logits + more
        return logits.softmax(-1) if mask is None else masked_softmax(logits, mask)

    def _fuses(self, mask: Tensor | None, scored: bool) -> bool:
        """Whether the fused kernel will do, as nobody needs the weights of all tokens; exported files keep the plain operators."""
        plain = self.attention_biases is None and self.key_dim == self.value_dim and mask is None
        exported = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()  # by dynamo, by TorchScript
        return plain and not (scored and not self.prefix) and not exported

    def _biased(self, logits: Tensor, biases: Tensor, cut: Cut, places: Tensor | None) -> Tensor:
        """Logits (B * groups, heads, n, n) plus the bias of each pair's offset."""
        batch, heads, members, _ = logits.shape
        if places is not None:
            return logits + _between(biases[:, cut.bias_index[0]], places)
        if cut.groups == 1:
            return logits + biases[:, cut.bias_index[0]]
        bias = biases[:, cut.bias_index].transpose(0, 1)  # (groups, heads, n, n)
        return (logits.reshape(-1, cut.groups, heads, members, members) + bias).reshape(batch, heads, members, members)

    def _packed(
        self, x: Tensor, cut: Cut, lengths: Tensor, places: Tensor | None, scored: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same for packed tokens (sum n_i, C), each image by itself."""
        q, k, v = self._split(self.qkv(x).reshape(len(x), self.heads, -1))
        bias = None if self.attention_biases is None else self.attention_biases[:, cut.bias_index[0]]
        scale = self.key_dim**-0.5
        context = packed_attention(q, k, v, lengths, scale, bias, places)
        out: Tensor = self.proj(context.flatten(1))
        if not scored:
            return out, None
        scores = packed_score(q, k, context, lengths, scale, 0 if self.prefix else None, bias, places)
        return out, scores[ranks(lengths) >= self.prefix]
