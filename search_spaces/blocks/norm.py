"""A norm between other blocks, as CLIP has one before the first (arXiv 2103.00020, section 2.4)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import State, Tokens

__all__ = ["Norm"]


class NormModule(nn.Module):
    """(B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


@dataclass(frozen=True)
class Norm(BlockSpec):
    """LN of tokens, none of which were dropped yet."""

    kind: ClassVar[str] = "norm"
    eps: float = 1e-5

    def output(self, state: State) -> Tokens:
        if not isinstance(state, Tokens) or state.pruned:
            raise ValueError(f"a norm takes all tokens, got {state}")
        return replace(state, scored_by=None)

    def macs(self, state: State) -> int:
        self.output(state)
        return 0

    def params(self, state: State) -> int:
        return 2 * self.output(state).channels

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self.output(state)
        return (Row("norm", source.count, (("c", source.channels),)),)

    def build(self, state: State) -> nn.Module:
        return NormModule(self.output(state).channels, self.eps)
