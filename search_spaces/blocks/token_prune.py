"""Dropping tokens that little is made of (AS-ViT, arXiv 2209.13802, section 3), or fusing or merging them; see `search_spaces.merging`."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.merging import fuse, match, merge
from search_spaces.states import State, Tokens
from search_spaces.tokens import Chosen, Kept, choose_above, keep_above, owners, pack, ranks, soft_mask, take

__all__ = ["REST", "TokenPrune", "TokenPruneModule"]

REST = ("dropped", "fused", "merged")

TEMPERATURE = 0.0196  # times 1 / N: AS-ViT's 1e-4 on its 196 patches


class TokenPruneModule(nn.Module):
    """`Kept` with the scores of the block before, or with the keys where patches are merged -> `Kept` with fewer tokens.

    `threshold`, where it is learned, is a multiple of the mean score 1 / N. In training dropped tokens are masked. Else they
    are gone: from a batch of one, as dense tokens; from a larger one, packed, so that every image keeps what it keeps alone.
    """

    def __init__(self, keep: int, adaptive: bool, state: Tokens, rest: str = "dropped") -> None:
        super().__init__()
        self.keep, self.prefix, self.total = keep, state.prefix, state.grid[0] * state.grid[1]
        self.fewer = state.patches - keep
        self.merges, self.fuses = rest == "merged", rest == "fused" and (self.fewer > 0 or state.fused)
        # Where it starts says little: `compress.thresholds` sets it so that `keep` patches stay on average.
        self.threshold = nn.Parameter(torch.tensor(1 - keep / self.total)) if adaptive else None

    def forward(self, given: Kept) -> Kept:
        """Choose among the patches."""
        if self.merges:
            return self._merged(given)
        scores = given.score
        assert scores is not None, "the block before scores the patches"
        if self.threshold is None:
            # In any order: attention and mean do not tell it, and one operator is what a network of a fifth of a ms can afford.
            kept = scores.topk(self.keep, sorted=False).indices
            only = self._only(given, kept, scores)
            return self._with_fused(only, given, kept, scores) if self.fuses else only
        if self.training:
            return self._masked(given, scores, self.threshold)
        if given.lengths is not None:
            return self._fewer(given, scores, given.lengths, self.threshold)
        above = keep_above(scores, self.threshold, self.total)
        if len(scores) == 1:
            return self._alone(given, above, scores)
        return self._packed(given, above, scores)

    def _only(self, given: Kept, kept: Tensor, scores: Tensor) -> Kept:
        """Of each image the patches (B, k)."""
        places = kept if given.places is None else given.places.gather(1, kept)
        tokens = kept + self.prefix
        if self.prefix:
            first = torch.arange(self.prefix, device=kept.device).expand(len(kept), -1)
            tokens = torch.cat([first, tokens], 1)
        mask = torch.zeros_like(scores).scatter(1, kept, 1.0).bool()
        return Kept(take(given.x, tokens), places=places, chosen=Chosen(scores, mask.sum(1), mask))

    def _with_fused(self, only: Kept, given: Kept, kept: Tensor, scores: Tensor) -> Kept:
        """`only` what is kept, and behind it one token of all that was not, here or before."""
        token, weight = fuse(given.x[:, self.prefix :], scores, kept, given.fused)
        return replace(only, x=torch.cat([only.x, token], 1), fused=weight)

    def _merged(self, given: Kept) -> Kept:
        """The patches that stay, and those that others were merged into."""
        if not self.fewer:
            every = torch.ones(len(given.x), self.keep, dtype=torch.bool, device=given.x.device)
            return replace(given, keys=None, chosen=Chosen(every.float(), every.sum(1), every))
        assert given.keys is not None, "the block before gives the patches' keys"
        found = match(given.keys, self.fewer)
        x, sizes = merge(given.x, given.sizes, self.prefix, found)
        best = found.similarity.amax(-1)
        stays = torch.ones_like(best).scatter(1, found.merged, 0.0).bool()
        counts = stays.sum(1) + found.similarity.shape[2]
        return Kept(x, sizes=sizes, chosen=Chosen(best, counts, stays, found.similarity))

    def _alone(self, given: Kept, above: Tensor, scores: Tensor) -> Kept:
        """Of the one image the patches (1, n) that are to stay."""
        tokens = F.pad(above, (self.prefix, 0), value=True)[0].nonzero()[:, 0]
        kept = tokens[self.prefix :] - self.prefix
        places = kept if given.places is None else given.places[0].index_select(0, kept)
        x = given.x[0].index_select(0, tokens)[None]
        return Kept(x, places=places[None], chosen=Chosen(scores, above.sum(1), above))

    def _masked(self, given: Kept, scores: Tensor, threshold: Tensor) -> Kept:
        earlier = None if given.mask is None else given.mask[:, self.prefix :]
        # Through the scores too, a gradient as steep as 1 / temperature would drown what the weights learn from the task.
        mask = soft_mask(scores.detach(), threshold, self.total, TEMPERATURE / self.total, earlier)
        whole = torch.cat([mask.new_ones(len(mask), self.prefix), mask], 1)
        return Kept(given.x, mask=whole, chosen=Chosen(scores, mask.sum(1), mask))

    def _packed(self, given: Kept, above: Tensor, scores: Tensor) -> Kept:
        """From dense tokens, with all patches there, to packed ones."""
        tokens = torch.cat([above.new_ones(len(above), self.prefix), above], 1)
        x, lengths = pack(given.x, tokens)
        everywhere = torch.arange(above.shape[1], device=above.device).expand_as(above)
        places = (everywhere if given.places is None else given.places)[above]
        return Kept(x, places=places, lengths=lengths, chosen=Chosen(scores, above.sum(1), above))

    def _fewer(self, given: Kept, scores: Tensor, lengths: Tensor, threshold: Tensor) -> Kept:
        """From packed tokens to fewer."""
        assert given.places is not None
        above = choose_above(scores, threshold, self.total, lengths - self.prefix)
        counts = torch.zeros_like(lengths).index_add(0, owners(lengths - self.prefix), above.to(lengths.dtype))
        tokens = ranks(lengths) < self.prefix
        tokens[~tokens] = above
        chosen = Chosen(scores, counts, above)
        return Kept(given.x[tokens], places=given.places[above], lengths=counts + self.prefix, chosen=chosen)


@dataclass(frozen=True)
class TokenPrune(BlockSpec):
    """Keeps of each image the `keep` patches that the attention of the block before makes most of.

    `adaptive`: those above a learned threshold, which are `keep` on average over the images it was calibrated on, and
    always at least one. What is dropped never comes back, so masks of several locations multiply.

    `rest`: what becomes of the others. fused: their mean, weighted by scores, is one token more behind the patches, which later
    locations take in with the weight of all it was made of (EViT). merged: patches need no scores, and `keep` are left when those most
    like others, by their keys, were merged with these (ToMe); no more than half can be in one go.
    """

    kind: ClassVar[str] = "token_prune"
    keep: int
    adaptive: bool = False
    rest: str = "dropped"

    def __post_init__(self) -> None:
        """Refuse to keep nothing, and thresholds for what only fixed numbers can be done with."""
        if self.keep < 1:
            raise ValueError(f"at least one patch must be kept, got keep={self.keep}")
        if self.rest not in REST:
            raise ValueError(f"rest must be one of {', '.join(REST)}, got {self.rest!r}")
        if self.adaptive and self.rest != "dropped":
            raise ValueError(
                f"patches are {self.rest} in fixed numbers, and thresholds are for dropped ones; leave adaptive out"
            )

    @property
    def label(self) -> str:
        rest = "" if self.rest == "dropped" else f" {self.rest}"
        return f"keep {'about ' if self.adaptive else ''}{self.keep}{rest}"

    def least(self, patches: int) -> int:
        """The fewest that can be kept of so many."""
        return (patches + 1) // 2 if self.rest == "merged" else 1

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Tokens) or state.scored_by is None:
            raise ValueError(f"tokens are pruned after a block whose attention scores them, such as MB3D; got {state}")
        if self.keep > state.patches:
            raise ValueError(f"{self.keep} patches cannot be kept of {state.patches}")
        if self.keep < self.least(state.patches):
            raise ValueError(
                f"no more than half of {state.patches} patches can be merged in one go, got keep={self.keep}"
            )
        return state

    def _does(self, source: Tokens) -> str:
        """What is done here, where all may be kept: dropped, fused, merged, or nothing."""
        if self.keep < source.patches or (self.rest == "fused" and source.fused):
            return self.rest
        return "nothing" if self.rest == "merged" else "dropped"

    def output(self, state: State) -> Tokens:
        source = self._input(state)
        does = self._does(source)
        fused, sized = does == "fused", source.sized or does == "merged"
        count = source.prefix + self.keep + fused
        return replace(source, count=count, pruned=True, scored_by=None, fused=fused, sized=sized)

    def macs(self, state: State) -> int:
        source = self._input(state)
        does = self._does(source)
        if does == "merged":
            assert source.scored_by is not None
            return (source.patches + 1) // 2 * (source.patches // 2) * source.scored_by.key
        return (source.count - source.prefix) * source.channels if does == "fused" else 0

    def params(self, state: State) -> int:
        self._input(state)
        return int(self.adaptive)

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        assert source.scored_by is not None
        heads, width, key = source.scored_by
        does = self._does(source)
        if does == "nothing":
            return ()
        width_dim = ("qk", key) if does == "merged" else ("v", width)
        dims: tuple[tuple[str, int], ...] = (("c", source.channels), ("heads", heads), width_dim)
        dims += (("adaptive", 1),) if self.adaptive else ()
        dims += ((does, 1),) if does != "dropped" else ()
        dims += (("kept", 1),) if source.pruned else ()
        return (Row("token_prune", source.count, dims),)

    def build(self, state: State) -> nn.Module:
        return TokenPruneModule(self.keep, self.adaptive, self._input(state), self.rest)
