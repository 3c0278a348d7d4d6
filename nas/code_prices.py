"""`CodePrices`: milliseconds of many codes at once, by small tables over the few positions that decide each term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # loading and listing tables must not wait for torch
    from search_spaces.blocks import Row
    from search_spaces.factors import Factor

__all__ = ["CHUNK", "CodePrices"]

CHUNK = 8192  # codes at a time: their columns, a byte or two each, stay in a core's cache
FUSED = 16_384  # entries of a table that several terms are added up in; 128 KiB of a core's cache

Columns = dict["Factor", NDArray[Any]]
"""Which of its values each factor has, for every code: (n,) of the smallest unsigned type."""


@dataclass(frozen=True)
class Lookup:
    """A table, flat, and what decides the entry: the last source moves fastest."""

    sources: tuple[Factor, ...]
    table: NDArray[Any]

    @staticmethod
    def of(sources: Sequence[Factor], table: NDArray[Any]) -> Lookup:
        """Without the sources that make no difference."""
        left = list(sources)
        for axis in reversed(range(len(left))):
            if np.array_equal(
                table, np.broadcast_to(table.take([0], axis), table.shape), equal_nan=table.dtype.kind == "f"
            ):
                table = table.take(0, axis)
                del left[axis]
        return Lookup(tuple(left), np.ascontiguousarray(table).reshape(-1))

    def over(self, sources: Sequence[Factor]) -> NDArray[Any]:
        """The table with a dimension for each of `sources`, of size 1 for those that it does not have."""
        mine = [source for source in sources if source in self.sources]
        table = self.table.reshape(sizes(self.sources)).transpose([self.sources.index(source) for source in mine])
        return table.reshape([len(source.values) if source in self.sources else 1 for source in sources])

    def read(self, columns: Columns, out: NDArray[Any]) -> None:
        """The entry of every code into `out` (n,)."""
        index = columns[self.sources[0]]
        if len(self.sources) > 1:
            index = index.astype(np.min_scalar_type(len(self.table) - 1))
            for source in self.sources[1:]:
                index *= len(source.values)
                index += columns[source]
        self.table.take(index, out=out, mode="clip")  # all are in range; "raise" would copy


@dataclass(frozen=True)
class CodePrices:
    """What `of` has prepared; holds tables alone, and no space."""

    factors: tuple[tuple[Factor, Lookup], ...]  # in an order in which each finds its sources
    terms: tuple[Lookup, ...]  # milliseconds
    limits: NDArray[np.int64]  # (positions,)
    positions: tuple[Factor, ...]  # those that decide anything

    @staticmethod
    def of(terms: Sequence[Factor], limits: Sequence[int], ms: Callable[[tuple[Row, ...]], float]) -> CodePrices:
        """Prices of the terms of a space whose positions have `limits` values; `ms` is NaN where rows have no price."""
        priced = [Lookup.of(term.sources, np.array([ms(rows) for rows in term.values])[term.table]) for term in terms]
        fused = added_up(priced)
        lookups: dict[Factor, Lookup | None] = {}
        for lookup in fused:
            for source in lookup.sources:
                collect(source, lookups)
        derived = tuple((factor, lookup) for factor, lookup in lookups.items() if lookup is not None)
        positions = tuple(factor for factor, lookup in lookups.items() if lookup is None)
        return CodePrices(derived, tuple(fused), np.array(limits), positions)

    def outside(self, codes: NDArray[Any]) -> int | None:
        """The first of codes (n, positions) with a value out of range."""
        if not len(codes) or ((codes.min(0) >= 0) & (codes.max(0) < self.limits)).all():
            return None
        return int(((codes < 0) | (codes >= self.limits)).any(1).argmax())

    def ms(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Uncalibrated milliseconds (n,) of codes (n, positions) in range; NaN where a row has no price."""
        found, part = np.zeros(len(codes)), np.empty(len(codes))
        digits = np.empty(codes.shape[::-1], np.min_scalar_type(self.limits.max()))
        np.copyto(digits, codes.T, casting="unsafe")
        columns: Columns = {}
        for factor in self.positions:
            assert factor.position is not None
            columns[factor] = digits[factor.position]
        for factor, lookup in self.factors:
            columns[factor] = np.empty(len(codes), lookup.table.dtype)
            lookup.read(columns, columns[factor])
        for lookup in self.terms:
            if lookup.sources:
                lookup.read(columns, part)
                found += part
            else:
                found += lookup.table
        return found


def sizes(sources: Sequence[Factor]) -> list[int]:
    """How many values each has."""
    return [len(source.values) for source in sources]


def added_up(terms: Sequence[Lookup]) -> list[Lookup]:
    """Fewer lookups with the same sum: terms are added to one that they make least larger, if it stays small."""
    found: list[Lookup] = []
    for term in sorted(terms, key=lambda term: -len(term.table)):
        together = [tuple(dict.fromkeys((*other.sources, *term.sources))) for other in found]
        grown = [prod(sizes(union)) for union in together]
        fitting = [i for i, size in enumerate(grown) if size <= FUSED or size == len(found[i].table)]
        if not fitting:
            found.append(term)
            continue
        best = min(fitting, key=lambda i: grown[i] / len(found[i].table))
        union = together[best]
        found[best] = Lookup(union, (found[best].over(union) + term.over(union)).reshape(-1))
    return found


def collect(factor: Factor, lookups: dict[Factor, Lookup | None]) -> None:
    """Add a factor behind all that decides it; a position has no lookup."""
    if factor in lookups:
        return
    if factor.table is None:
        lookups[factor] = None
        return
    lookup = Lookup.of(factor.sources, factor.table.astype(np.min_scalar_type(len(factor.values) - 1)))
    for source in lookup.sources:
        collect(source, lookups)
    lookups[factor] = lookup
