"""A norm between other blocks, as CLIP has one before the first (arXiv 2103.00020, section 2.4), and before attention pooling."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import State, Tokens
from search_spaces.tokens import Kept

__all__ = ["Norm"]


class NormModule(nn.Module):
    """(B, N, C) -> (B, N, C); what is `Kept` stays so."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, given: Tensor | Kept) -> Tensor | Kept:
        if isinstance(given, Kept):
            return replace(given, x=self.norm(given.x), score=None, keys=None, chosen=None)
        out: Tensor = self.norm(given)
        return out


@dataclass(frozen=True)
class Norm(BlockSpec):
    """LN of tokens."""

    kind: ClassVar[str] = "norm"
    eps: float = 1e-5

    def output(self, state: State) -> Tokens:
        if not isinstance(state, Tokens):
            raise ValueError(f"a norm takes tokens, got {state}")
        return replace(state, scored_by=None)

    def macs(self, state: State) -> int:
        self.output(state)
        return 0

    def params(self, state: State) -> int:
        return 2 * self.output(state).channels

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self.output(state)
        kept: tuple[tuple[str, int], ...] = (("kept", 1),) if source.pruned else ()
        return (Row("norm", source.count, (("c", source.channels), *kept)),)

    def build(self, state: State) -> nn.Module:
        return NormModule(self.output(state).channels, self.eps)
