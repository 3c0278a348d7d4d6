"""What may become of patches that are not kept: fused into one token (EViT, arXiv 2202.07800, section 3.3), or each merged with the one most like it (ToMe, arXiv 2210.09461, section 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.tokens import take

__all__ = ["Match", "fuse", "match", "merge", "proportional"]

SILENT = 1e-12  # least score of a patch: where nobody looks at any that is not kept, all of them count alike


def fuse(x: Tensor, scores: Tensor, kept: Tensor, earlier: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The token (B, 1, C) of the patches that are not kept, their mean weighted by their scores, and its weight (B, 1), their sum.

    Args:
        x: (B, n, C) patches, behind them, where there is one, the token of those that were fused before.
        scores: (B, n) of the patches.
        kept: (B, k) places of those that stay.
        earlier: (B, 1) weight of the token fused before, which is taken into the new one.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = wide.clamp(min=SILENT).scatter(1, kept, 0.0)
    weights = weights if earlier is None else torch.cat([weights, earlier], 1)
    total = weights.sum(1, keepdim=True)
    return (weights / total).to(x.dtype)[:, None] @ x, total


@dataclass(frozen=True)
class Match:
    """Which patches are merged: those in even places, the first set, may go into those in odd places, the second."""

    similarity: Tensor  # (B, a, b) cosine of each of the first set with each of the second
    merged: Tensor  # (B, r) the r of the first set most like one of the second, by number in their set
    into: Tensor  # (B, r) the one of the second set that each is most like
    stay: Tensor  # (B, a - r) the others of the first set, in order


def match(keys: Tensor, merged: int) -> Match:
    """Bipartite soft matching of patches by their keys (B, n, d), of which `merged`, at most n // 2, go into others (ToMe, section 3.1)."""
    unit = F.normalize(keys.detach(), dim=-1)  # what is merged with what has no gradient
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(-2, -1)
    best, nearest = similarity.max(-1)
    order = best.argsort(dim=-1, descending=True)
    gone = order[:, :merged]
    # In order: by how alike they are, a hair of rounding would change which are in even places at the next location.
    return Match(similarity, gone, nearest.gather(1, gone), order[:, merged:].sort(dim=-1).values)


def merge(x: Tensor, sizes: Tensor | None, prefix: int, found: Match) -> tuple[Tensor, Tensor]:
    """The leading `prefix` tokens, those of the first set that stay, and the second set; (B, n - r, C), and their sizes (B, n - r).

    A token is the mean of those it was merged of, weighted by `sizes` (B, n), how many patches each stands for; None while all
    are of size 1. Sums are taken in float32.
    """
    sizes = torch.ones(x.shape[:2], device=x.device) if sizes is None else sizes
    leading = torch.arange(prefix, device=x.device).expand(len(x), -1)
    stay, merged = torch.cat([leading, prefix + 2 * found.stay], 1), prefix + 2 * found.merged
    second = torch.arange(prefix + 1, x.shape[1], 2, device=x.device)
    counts, more = sizes.index_select(1, second), sizes.gather(1, merged)
    total = counts.scatter_add(1, found.into, more)
    into = found.into[..., None].expand(-1, -1, x.shape[2])
    sums = (x.index_select(1, second) * counts[..., None]).scatter_add(1, into, take(x, merged) * more[..., None])
    joined = (sums / total[..., None]).to(x.dtype)
    return torch.cat([take(x, stay), joined], 1), torch.cat([sizes.gather(1, stay), total], 1)


def proportional(sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What attention's logits get, (B, 1, 1, n), so that a merged token is looked at as all it stands for are (ToMe, eq. 1)."""
    return None if sizes is None else sizes.log().to(dtype)[:, None, None]
