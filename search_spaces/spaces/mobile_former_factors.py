"""The rows of Mobile-Formers, term by term: the states of `Arch` walked once for all codes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from search_spaces.blocks import MobileFormer, MobileFormerEmbed, MobileFormerPool, Row
from search_spaces.factors import Factor, Factors, in_a_row
from search_spaces.states import Map, State, Streams

if TYPE_CHECKING:
    from search_spaces.spaces.mobile_former import MobileFormers

__all__ = ["terms"]


def terms(space: MobileFormers) -> Iterator[Factor]:
    """What `Space.terms` promises."""
    factors = Factors(space.choices)
    derive = factors.derive

    def begun(size: int, stem: int, tokens: int) -> tuple[State, tuple[Row, ...]]:
        return in_a_row(space.beginning(stem, tokens), Map(3, size, size))

    def pooled(state: Streams, features: int) -> tuple[Row, ...]:
        return in_a_row((MobileFormerPool(features), space.head), state)[1]

    start = derive(begun, factors["resolution"], factors["stem"], factors["tokens"])
    yield derive(lambda start: start[1], start)
    state, width = derive(lambda start: start[0], start), derive(lambda: 0)
    for s, stage in enumerate(space.stages):
        width = derive(partial(space.fitting, s), width, factors[f"width{s}"])
        if stage.down:
            yield derive(lambda state, width: MobileFormerEmbed(width).rows(state), state, width)
            state = derive(lambda state, width: MobileFormerEmbed(width).output(state), state, width)
        for i in range(max(stage.depths)):
            there = derive(partial(_more, i), factors[f"depth{s}"])
            yield derive(_block, state, width, factors[f"ratio{s}.{i}"], there)
            state = derive(lambda state, width: MobileFormer(width).output(state), state, width)
    yield derive(pooled, state, factors["features"])


def _more(count: int, depth: int) -> bool:
    """Whether a stage has more blocks than `count`."""
    return count < depth


def _block(state: Streams, width: int, ratio: float, there: bool) -> tuple[Row, ...]:
    return MobileFormer(width, ratio).rows(state) if there else ()
