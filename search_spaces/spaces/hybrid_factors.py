"""The rows of hybrid networks, term by term: the states of `Arch` walked once for all codes, stage by stage."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from search_spaces.blocks import MB3D, MB4D, Embed, Row, Stem, TokenPrune
from search_spaces.factors import Factor, Factors
from search_spaces.spaces.hybrid_parts import share_of, uncut
from search_spaces.states import Map, Tokens, tokens_of

if TYPE_CHECKING:
    from search_spaces.spaces.hybrid import Hybrid

__all__ = ["terms"]


class Place(NamedTuple):
    """What depths and the partition point make of one stage."""

    body: int  # 4D blocks
    tail: int  # 3D blocks
    last: bool  # whether no stage follows
    laid_out: bool  # whether tokens reach its 3D blocks, and not a map


class Role(NamedTuple):
    """What one of a stage's 3D blocks is fed."""

    map: bool  # all places, as a map
    share: float  # of the patches, that is left


Form = tuple[MB3D, Tokens]
"""A stage's 3D block, whatever its ratio, and all tokens of the stage."""


def terms(space: Hybrid) -> Iterator[Factor]:
    """What `Space.terms` promises."""
    factors = Factors(space.choices)
    depths = [factors[f"depth{s}"] for s in range(len(space.stages))]
    plan = factors.derive(partial(places, space), factors["mb3d"], *depths)
    state = factors.derive(lambda size: Map(3, size, size), factors["resolution"])
    for s in range(len(space.stages)):
        place = factors.derive(lambda plan, s=s: plan[s], plan)
        state = yield from stage_terms(space, factors, s, place, state)
    yield factors.derive(space.head.rows, state)


def places(space: Hybrid, count: int, *depths: int) -> tuple[Place, ...]:
    """Every stage's place; `count` 3D blocks, or the most below it that there is room for."""
    tails = space.trailing(depths, space.mb3d[space.fitting(depths, space.mb3d.index(count))])
    found = list[Place]()
    for s, (depth, tail) in enumerate(zip(depths, tails, strict=True)):
        after_3d = s > 0 and tails[s - 1] > 0
        found.append(Place(depth - tail, tail, not any(depths[s + 1 :]), after_3d))
    return tuple(found)


def stage_terms(
    space: Hybrid, factors: Factors, s: int, place: Factor, before: Factor
) -> Generator[Factor, None, Factor]:
    """The terms of a stage; returns the state behind it."""
    derive = factors.derive

    def embed(width: int, state: Map | Tokens) -> Stem | Embed:
        return Embed(width, "separable" if isinstance(state, Tokens) else "full") if s else Stem(width)

    def entered(there: bool, width: int, state: Map | Tokens) -> tuple[Row, ...]:
        return embed(width, state).rows(state) if there and not ended(state) else ()

    def reached(width: int, state: Map | Tokens) -> Map | Tokens | None:
        return None if ended(state) else embed(width, state).output(state)

    def left(kind: str, state: Map | Tokens | None, share: float, before: Map | Tokens) -> Map | Tokens:
        if state is None or kind == "absent":
            return before
        return state if kind == "4D" else shared(tokens_of(state), share)

    there = derive(lambda place: place.body + place.tail > 0, place)
    width = factors[f"width{s}"]
    yield derive(entered, there, width, before)
    state = derive(reached, width, before)
    yield from terms_4d(space, factors, s, place, state)
    share = derive(lambda: 1.0)
    if space.stages[s].block:
        share = yield from terms_3d(space, factors, s, place, state)
    kind = derive(lambda place: "3D" if place.tail else "4D" if place.body else "absent", place)
    return derive(left, kind, state, share, before)


def ended(state: Map | Tokens) -> bool:
    """Whether patches were dropped, behind which no stage follows."""
    return isinstance(state, Tokens) and state.pruned


def shared(tokens: Tokens, share: float) -> Tokens:
    """A share of the tokens of a stage."""
    return replace(tokens, count=share_of(tokens.count, share), pruned=True) if share < 1 else tokens


def terms_4d(space: Hybrid, factors: Factors, s: int, place: Factor, state: Factor) -> Iterator[Factor]:
    """The 4D blocks of a stage."""

    def rows(i: int, run: tuple[int, Map, str] | None, ratio: float) -> tuple[Row, ...]:
        return MB4D(ratio, space.layer_scale, run[2]).rows(run[1]) if run and i < run[0] else ()

    body = factors.derive(lambda place: place.body, place)
    run = factors.derive(
        lambda body, state, mixer: (body, state, mixer) if body and isinstance(state, Map) else None,
        body,
        state,
        factors[f"mixer{s}"],
    )
    for i in range(space.depths[s]):
        yield factors.derive(partial(rows, i), run, factors[f"ratio{s}.mb4d.{i}"])


def terms_3d(space: Hybrid, factors: Factors, s: int, place: Factor, state: Factor) -> Generator[Factor, None, Factor]:
    """The 3D blocks of a stage and its pruning locations; returns the share of patches that is left."""
    derive, stage = factors.derive, space.stages[s]
    form, looped = form_of(space, factors, s, state), derive(external, factors[f"loops{s}"], factors[f"recursion{s}"])

    def block(form: Form | None, role: Role | None, ratio: float) -> tuple[Row, ...]:
        if form is None or role is None:
            return ()
        spec, tokens = form
        if role.map:
            return replace(spec, ratio=ratio).rows(Map(tokens.channels, *tokens.grid))
        return replace(spec if role.share == 1 else uncut(spec), ratio=ratio).rows(shared(tokens, role.share))

    def dropping(scored: Tokens | None, before: float, after: float) -> tuple[Row, ...]:
        if scored is None or after >= before:
            return ()
        return TokenPrune(share_of(scored.count, after)).rows(shared(scored, before))

    share = derive(lambda: 1.0)
    scored = derive(lambda form: form and form[0].output(form[1]), form)
    for i in reversed(range(min(space.depths[s], max(space.mb3d)))):  # counted from the stage's end
        if i in stage.locations:
            allowed = derive(partial(may_drop, i), place, looped)
            before, share = share, derive(fewer, allowed, factors[f"keep{s}.{i}"], share)
            yield derive(dropping, scored, before, share)
        yield derive(block, form, derive(partial(role, i), place, share), factors[f"ratio{s}.mb3d.{i}"])
    return share


def external(loops: int, recursion: str) -> bool:
    """Whether neighbouring blocks are gone through loop after loop."""
    return loops > 1 and recursion == "external"


def may_drop(i: int, place: Place, looped: bool) -> bool:
    """Whether there is a pruning location before the 3D block `i`, counted from the stage's end."""
    return place.last and i < place.tail - 1 and not looped


def fewer(allowed: bool, keep: float, share: float) -> float:
    """The share of patches behind a location."""
    return min(share, keep) if allowed else share


def role(i: int, place: Place, share: float) -> Role | None:
    """Of the 3D block `i`, counted from the stage's end; None where it is not there."""
    return Role(i == place.tail - 1 and not place.laid_out, share) if i < place.tail else None


def form_of(space: Hybrid, factors: Factors, s: int, state: Factor) -> Factor:
    """A stage's 3D block. Which loop has which groups makes no difference to its rows, nor by which order tokens are moved."""
    derive, stage, plain = factors.derive, space.stages[s], space.plain(s)

    def cut(state: Map | Tokens | None, groups: int, order: str) -> tuple[int, str]:
        fitting = 1 if state is None else stage.groups[space.dividing(s, tokens_of(state).count, groups)]
        return fitting, "strided" if fitting > 1 and order != "contiguous" else "contiguous"

    def cuts(loops: int, inverse: int, *each: tuple[int, str]) -> tuple[tuple[tuple[int, str], ...], bool]:
        used = tuple(sorted(each[:loops]))
        return used, bool(inverse) or all(order == "contiguous" for _, order in used)

    def form(
        state: Map | Tokens | None,
        arranged: tuple[tuple[tuple[int, str], ...], bool],
        residual: str,
        nll: float,
        value: int,
    ) -> Form | None:
        if state is None:
            return None
        used, inverse = arranged
        grouped = any(groups > 1 for groups, _ in used)
        groups, orders = zip(*used, strict=True) if grouped else ((), ())
        loops = replace(plain, residual=residual, nll=nll, value_dim=value, loops=len(used))
        return replace(loops, groups=groups, orders=orders, inverse=inverse), tokens_of(state)

    each = [
        derive(cut, state, factors[f"groups{s}.{loop}"], factors[f"order{s}.{loop}"])
        for loop in range(max(stage.loops))
    ]
    arranged = derive(cuts, factors[f"loops{s}"], factors[f"inverse{s}"], *each)
    value = factors[f"value{s}"] if len(stage.values) > 1 else derive(lambda: plain.value_dim)
    return derive(form, state, arranged, factors[f"residual{s}"], factors[f"nll{s}"], value)
