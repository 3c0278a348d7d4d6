"""Pure functions on tokens: their scores, masks that train thresholds, and running what is kept (AS-ViT, arXiv 2209.13802).

A class token competes with nobody: callers cut its entry off a score and keep it. Masks and choices are of patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Chosen",
    "Kept",
    "attend",
    "choose_above",
    "keep_above",
    "masked_softmax",
    "multiply",
    "owners",
    "pack",
    "packed_attention",
    "packed_score",
    "ranks",
    "score",
    "soft_mask",
    "take",
    "unpack",
]

HALF = (torch.float16, torch.bfloat16)
FEW = 160  # tokens of one image below which the weights of all pairs stay in a core's cache, and the fused kernel takes longer


@dataclass(frozen=True)
class Chosen:
    """What one pruning location did: the patches' scores, and how many each image keeps."""

    scores: Tensor  # (B, n); (sum n_i,) where images came with different numbers of patches
    counts: Tensor  # (B,), with gradient in training
    kept: Tensor  # like `scores`: true, or 1 in training, for those that stay
    similarity: Tensor | None = (
        None  # (B, a, b) where patches are merged: `scores` and `kept` are then (B, a), see `Match`
    )

    @staticmethod
    def together(parts: "Sequence[Chosen]") -> "Chosen":
        """What a location did with the images of several parts of a batch."""
        scores, counts, kept = zip(*((part.scores, part.counts, part.kept) for part in parts), strict=True)
        return Chosen(torch.cat(scores), torch.cat(counts), torch.cat(kept))


@dataclass(frozen=True)
class Kept:
    """Tokens on their way through a network that drops some of them.

    In training all tokens stay and `mask` says which count. Otherwise the dropped ones are gone, and `places` says where on
    the grid the others lie; where images keep different numbers, the tokens of all are packed one image after the other.
    Instead of being dropped, patches may be fused into one token, the last, or merged; see `search_spaces.merging`.
    """

    x: Tensor  # (B, n, C), or (sum n_i, C) packed
    mask: Tensor | None = None  # (B, N), 1 for tokens that are kept
    places: Tensor | None = None  # (B, patches), or (sum of patches,) packed; None while all are there
    lengths: Tensor | None = None  # (B,) tokens of each image, packed
    score: Tensor | None = None  # of the patches, by the block before: (B, patches), or packed
    chosen: Chosen | None = None  # of the pruning location just passed
    fused: Tensor | None = None  # (B, 1) weight of the fused token; None without one
    sizes: Tensor | None = (
        None  # (B, n) how many patches each token stands for, 1 for a class token; None while all are 1
    )
    keys: Tensor | None = None  # of the patches, by the block before: (B, patches, d), the mean over its heads

    @property
    def counts(self) -> Tensor | None:
        """(B, n) as how many each token counts in a mean; None where each counts as one."""
        return self.mask if self.sizes is None else self.sizes.to(self.x.dtype)


def score(attention: Tensor, context: Tensor, row: int | None, mask: Tensor | None = None) -> Tensor:
    """How much is made of each token, (B, N): attention to it, each head weighted by its share of the token's output.

    Args:
        attention: (B, H, N, N) weights, queries in the rows.
        context: (B, H, N, d), attention times values, before the projection.
        row: place of the class token, whose attention counts; None for the mean over the tokens. Its own entry says how much
            it looks at itself, and ranks nothing.
        mask: (B, N), 1 for tokens that are still there: only they count in the mean, as when the others are gone.
    """
    norms: Tensor = torch.linalg.vector_norm(context, dim=-1)
    total = norms.sum(1, keepdim=True) + 1e-8
    # The ONNX optimiser takes so small an addend for 0; a token that all heads are silent at would divide by 0 there.
    share = norms / total.clamp(min=1e-8)
    if row is not None:
        seen = attention[:, :, row]
    elif mask is None:
        seen = attention.mean(2)
    else:
        weights = (mask / mask.sum(-1, keepdim=True)).to(attention.dtype)
        seen = (weights[:, None, None] @ attention)[:, :, 0]
    return (seen * share).sum(1)


def keep_above(scores: Tensor, scaled_threshold: Tensor | float, count: int, earlier: Tensor | None = None) -> Tensor:
    """(B, N) bool, true where a score is above the threshold, and for each image's best-scored token: one is always kept.

    The threshold is given as `scaled_threshold`, its multiple of the mean score 1 / `count`, so that it means the same on every
    grid; `count` is the number of tokens that nothing is dropped of. Tokens that `earlier` (B, N) dropped stay dropped.
    """
    return _above(scores, scaled_threshold / count, earlier)


def _above(scores: Tensor, threshold: Tensor | float, earlier: Tensor | None) -> Tensor:
    if earlier is not None:
        scores = scores.masked_fill(earlier == 0, float("-inf"))
    places = torch.arange(scores.shape[-1], device=scores.device)
    return (scores > threshold) | (places == scores.argmax(-1, keepdim=True))


def soft_mask(
    scores: Tensor, scaled_threshold: Tensor, count: int, temperature: float = 1e-4, earlier: Tensor | None = None
) -> Tensor:
    """(B, N) mask, the 0 and 1 of `keep_above` with the gradient of `sigmoid((score - threshold) / temperature)`.

    Scores and threshold get gradients; `temperature` is in units of scores. With `earlier`, the mask of the location before
    this one, the two are multiplied.
    """
    threshold = scaled_threshold / count
    soft = torch.sigmoid((scores - threshold) / temperature)
    # The bracket is exactly 0: in another order, rounding would leave masks a hair off 0 and 1.
    mask = _above(scores, threshold, earlier).to(soft.dtype) + (soft - soft.detach())
    return mask if earlier is None else multiply(mask, earlier)


def multiply(mask: Tensor, earlier: Tensor) -> Tensor:
    """The mask of a location given that of the location before, both (B, N): what is dropped once never comes back."""
    return mask * earlier


def masked_softmax(logits: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Attention weights as if dropped tokens were gone, differentiable in the mask; every token sees itself.

    With a = exp(logit - max) * mask it is (a + eps / N) / (sum of a + eps).

    Args:
        logits: (B, H, N, N), queries in the rows.
        mask: (B, N), 0 for dropped tokens and 1 for the others.
        eps: keeps the gradient where a mask is all but empty; a dropped token gets about eps / N.
    """
    count = logits.shape[-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = torch.eye(count, dtype=wide.dtype, device=wide.device)
    seen = mask.to(wide.dtype)[:, None, None, :] * (1 - own) + own
    # The largest of what is seen: next to a larger one of a dropped token, the others could vanish below eps.
    largest = wide.detach().masked_fill(seen == 0, float("-inf")).amax(-1, keepdim=True)
    a = (wide - largest).clamp(max=0).exp() * seen
    return ((a + eps / count) / (a.sum(-1, keepdim=True) + eps)).to(logits.dtype)


def choose_above(scores: Tensor, scaled_threshold: Tensor | float, count: int, lengths: Tensor) -> Tensor:
    """`keep_above` for the packed scores (sum n_i,) of images with `lengths` (B,) patches: (sum n_i,) bool."""
    image, places = owners(lengths), torch.arange(len(scores), device=scores.device)
    is_best = scores == _most(scores, image, len(lengths))[image]
    first = -_most(torch.where(is_best, -places, -len(places)), image, len(lengths))  # of equally good ones
    return (scores > scaled_threshold / count) | (places == first[image])


def owners(lengths: Tensor) -> Tensor:
    """(sum n_i,) the number of the image that each packed token is of."""
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def ranks(lengths: Tensor) -> Tensor:
    """(sum n_i,) the number that each packed token has in its image."""
    first = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum()), device=lengths.device) - first[owners(lengths)]


def _most(x: Tensor, image: Tensor, count: int) -> Tensor:
    """The largest value of each of `count` images, (count, ...), of packed ones (sum n_i, ...)."""
    index = image.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    return x.new_empty(count, *x.shape[1:]).scatter_reduce(0, index, x, "amax", include_self=False)


def take(x: Tensor, places: Tensor) -> Tensor:
    """(B, k, C): of the tokens (B, N, C) those at `places` (B, k)."""
    batch, count, channels = x.shape
    first = count * torch.arange(batch, device=x.device)[:, None]
    return x.reshape(-1, channels).index_select(0, (places + first).reshape(-1)).reshape(batch, -1, channels)


def pack(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept tokens of all images one after the other, (sum n_i, ...), and how many each image has, (B,).

    `x` is (B, N, ...), `kept` (B, N) bool. Linear layers and norms run on packed tokens as they are.
    """
    rows = kept.flatten().nonzero()[:, 0]
    return x.flatten(0, 1).index_select(0, rows), kept.sum(-1)


def unpack(packed: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """Each image's tokens, (n_i, ...); the inverse of `pack`."""
    return torch.split(packed, lengths.tolist())


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    scale: float,
    bias: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Attention within each image of a pack, (sum n_i, H, d): every image gets what it gets alone, without padding.

    Args:
        q: (sum n_i, H, key width), as `k`; `v` is (sum n_i, H, d).
        k: see `q`.
        v: see `q`.
        lengths: (B,) tokens of each image.
        scale: multiplies the logits, before the bias.
        bias: (H, N, N) of the whole grid, added to the logits.
        places: (sum n_i,) where on the grid each token lies; needed for `bias`.
    """
    if bias is None and _has_varlen(q, v):
        return _varlen(q, k, v, lengths, scale)
    images = zip(*(_heads_first(x, lengths) for x in (q, k, v)), _biases(bias, places, lengths), strict=True)
    mixed = [attend(q, k, v, scale, own) for q, k, v, own in images]
    return torch.cat([context[0].transpose(0, 1) for context in mixed])


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Attention of every query to all keys, (B, H, n, d), by the kernels that are fastest for so many tokens."""
    if bias is not None or q.is_cuda or len(q) > 1 or q.shape[2] > FEW:
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    logits = torch.bmm(q[0] * scale, k[0].transpose(-2, -1))
    return torch.bmm(logits.softmax(-1), v[0])[None]


def _has_varlen(q: Tensor, v: Tensor) -> bool:
    """Whether torch's kernel for packed sequences takes such heads: in half precision on CUDA, from the Ampere cards on."""
    fits = q.dtype in HALF and q.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    return fits and q.is_cuda and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """`packed_attention` in one kernel for all images, which exists for half precision on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max())
    out = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest, scale=scale)
    assert isinstance(out, Tensor)
    return out


def packed_score(
    q: Tensor,
    k: Tensor,
    context: Tensor,
    lengths: Tensor,
    scale: float,
    row: int | None,
    bias: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """`score` within each image of a pack, (sum n_i,).

    Arguments are those of `packed_attention`, whose result is `context`; `row` is the class token's place in each image.
    """
    if row is not None:
        return _score_of_row(q, k, context, lengths, scale, row, bias, places)
    images = zip(*(_heads_first(x, lengths) for x in (q, k, context)), _biases(bias, places, lengths), strict=True)
    scores = []
    for q_own, k_own, context_own, bias_own in images:
        logits = q_own * scale @ k_own.transpose(-2, -1)
        logits = logits if bias_own is None else logits + bias_own
        scores.append(score(logits.softmax(-1), context_own, None)[0])
    return torch.cat(scores)


def _score_of_row(
    q: Tensor,
    k: Tensor,
    context: Tensor,
    lengths: Tensor,
    scale: float,
    row: int,
    bias: Tensor | None,
    places: Tensor | None,
) -> Tensor:
    """`packed_score` by the attention of one token of each image, of all images at once."""
    image = owners(lengths)
    asking = (lengths.cumsum(0) - lengths + row)[image]  # the token whose attention counts, for each token
    if q.is_cuda:  # in one go; a CPU is faster where not every token gets a copy of the query
        logits = (q[asking] * k).sum(-1) * scale  # (sum n_i, H)
    else:
        pairs = zip(unpack(q, lengths), unpack(k, lengths), strict=True)
        logits = torch.cat([torch.einsum("hd,nhd->nh", own_q[row], own_k) for own_q, own_k in pairs]) * scale
    if bias is not None:
        if places is None:
            raise ValueError("a bias needs the places of the tokens on the grid")
        logits = logits + bias[:, places[asking], places].T
    weights = (logits - _most(logits, image, len(lengths))[image]).exp()
    total = weights.new_zeros(len(lengths), weights.shape[1]).index_add(0, image, weights)
    norms: Tensor = torch.linalg.vector_norm(context, dim=-1)
    return (weights / total[image] * norms / (norms.sum(1, keepdim=True) + 1e-8)).sum(1)


def _heads_first(x: Tensor, lengths: Tensor) -> list[Tensor]:
    """(sum n_i, H, d) -> (1, H, n_i, d) for each image."""
    return [image.transpose(0, 1)[None] for image in unpack(x, lengths)]


def _biases(bias: Tensor | None, places: Tensor | None, lengths: Tensor) -> Sequence[Tensor | None]:
    """(1, H, n_i, n_i) for each image, or None for each."""
    if bias is None:
        return [None] * len(lengths)
    if places is None:
        raise ValueError("a bias needs the places of the tokens on the grid")
    return [bias[:, own[:, None], own][None] for own in unpack(places, lengths)]
