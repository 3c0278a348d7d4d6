"""The rows of plain ViTs, term by term: the states of `Arch` walked once for all codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.blocks import ClassToken, Patch, Position, Row, TokenPrune
from search_spaces.factors import Factor, Factors, in_a_row
from search_spaces.states import Map, Scorer, State, Tokens

if TYPE_CHECKING:
    from search_spaces.spaces.vit import Vit

__all__ = ["terms"]


def terms(space: Vit) -> Iterator[Factor]:
    """What `Space.terms` promises."""
    factors = Factors(space.choices)
    derive, depth = factors.derive, factors["depth"]

    def embedded(size: int, width: int) -> tuple[State, tuple[Row, ...]]:
        return in_a_row((Patch(width, space.patch), ClassToken(), Position()), Map(3, size, size))

    def kept(before: Tokens, keep: int) -> Tokens:
        """What is left behind a location that may keep all."""
        fewer = 0 < keep < before.patches
        return replace(before, count=before.prefix + keep, pruned=True) if fewer else before

    def dropping(before: Tokens, after: Tokens, share: float) -> tuple[Row, ...]:
        scored = replace(before, scored_by=Scorer(space.heads(before.channels, share), space.value_dim))
        return TokenPrune(after.patches).rows(scored) if after.count < before.count else ()

    def block(state: Tokens, share: float, key_dim: int, ratio: float, there: bool) -> tuple[Row, ...]:
        return space.block(space.heads(state.channels, share), key_dim, ratio).rows(state) if there else ()

    start = derive(embedded, factors["resolution"], factors["width"])
    yield derive(lambda start: start[1], start)
    state = derive(lambda start: start[0], start)
    for i in range(max(space.depths)):
        there = derive(lambda depth, i=i: i < depth, depth)
        if i in space.locations:
            keep = derive(lambda keep, there: keep * there, factors[f"keep{i}"], there)
            before, state = state, derive(kept, state, keep)
            yield derive(dropping, before, state, factors[f"heads{i - 1}"])
        yield derive(block, state, *(factors[f"{name}{i}"] for name in ("heads", "qk", "ratio")), there)
    yield derive(space.head.rows, state)
