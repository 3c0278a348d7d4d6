"""Dropping tokens that little is made of (AS-ViT, arXiv 2209.13802, section 3)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import State, Tokens
from search_spaces.tokens import Chosen, Kept, choose_above, keep_above, owners, pack, ranks, soft_mask, take

__all__ = ["TokenPrune", "TokenPruneModule"]

TEMPERATURE = 0.0196  # times 1 / N: AS-ViT's 1e-4 on its 196 patches


class TokenPruneModule(nn.Module):
    """`Kept` with the scores of the block before -> `Kept` without the patches that are dropped.

    `threshold`, where it is learned, is a multiple of the mean score 1 / N. In training dropped tokens are masked. Else they
    are gone: from a batch of one, as dense tokens; from a larger one, packed, so that every image keeps what it keeps alone.
    """

    def __init__(self, keep: int, adaptive: bool, state: Tokens) -> None:
        super().__init__()
        self.keep, self.prefix, self.total = keep, state.prefix, state.grid[0] * state.grid[1]
        # Where it starts says little: `compress.thresholds` sets it so that `keep` patches stay on average.
        self.threshold = nn.Parameter(torch.tensor(1 - keep / self.total)) if adaptive else None

    def forward(self, given: Kept) -> Kept:
        """Choose among the patches."""
        scores = given.score
        assert scores is not None, "the block before scores the patches"
        if self.threshold is None:
            # In any order: attention and mean do not tell it, and one operator is what a network of a fifth of a ms can afford.
            return self._only(given, scores.topk(self.keep, sorted=False).indices, scores)
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
    """

    kind: ClassVar[str] = "token_prune"
    keep: int
    adaptive: bool = False

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if self.keep < 1:
            raise ValueError(f"at least one patch must be kept, got keep={self.keep}")

    @property
    def label(self) -> str:
        return f"keep {'about ' if self.adaptive else ''}{self.keep}"

    def _input(self, state: State) -> Tokens:
        if not isinstance(state, Tokens) or state.scored_by is None:
            raise ValueError(f"tokens are pruned after a block whose attention scores them, such as MB3D; got {state}")
        if self.keep > state.patches:
            raise ValueError(f"{self.keep} patches cannot be kept of {state.patches}")
        return state

    def output(self, state: State) -> Tokens:
        source = self._input(state)
        return replace(source, count=source.prefix + self.keep, pruned=True, scored_by=None)

    def macs(self, state: State) -> int:
        self._input(state)
        return 0

    def params(self, state: State) -> int:
        self._input(state)
        return int(self.adaptive)

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self._input(state)
        assert source.scored_by is not None
        heads, width = source.scored_by
        dims: tuple[tuple[str, int], ...] = (("c", source.channels), ("heads", heads), ("v", width))
        dims += (("adaptive", 1),) if self.adaptive else ()
        dims += (("kept", 1),) if source.pruned else ()
        return (Row("token_prune", source.count, dims),)

    def build(self, state: State) -> nn.Module:
        return TokenPruneModule(self.keep, self.adaptive, self._input(state))
