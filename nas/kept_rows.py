"""Rows behind a pruning location, where any number of tokens may be left: priced between the numbers that were measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.table_file import RowTime

if TYPE_CHECKING:  # loading and listing tables must not wait for torch
    from search_spaces.blocks import Row
    from search_spaces.space import Measurable

__all__ = ["KeptRows", "could_price", "filled"]

MARK = "kept=1"  # among the dims in a row's key

Line = tuple[tuple[int, ...], tuple[float, ...]]
"""Measured numbers of tokens, ascending, and the ms at each."""


@dataclass(frozen=True)
class KeptRows:
    """The measured kept rows, those that are equal but for `positions` together."""

    lines: Mapping[str, Line]  # by key without positions

    @staticmethod
    def of(rows: Mapping[str, RowTime]) -> KeptRows:
        """The kept ones among a table's rows."""
        return KeptRows._among({key: time.ms for key, time in rows.items()})

    @staticmethod
    def _among(rows: Mapping[str, float]) -> KeptRows:
        found: dict[str, list[tuple[int, float]]] = {}
        for key, ms in rows.items():
            name, positions = _split(key)
            if MARK in name.partition("[")[2].rstrip("]").split(","):
                found.setdefault(name, []).append((positions, ms))
        return KeptRows({name: _line(points) for name, points in found.items()})

    def ms(self, row: Row) -> float | None:
        """Milliseconds of a row: linear between its two measured neighbours, beyond the last by the end segment, never below 0.

        None where the row is no kept one, or was measured at fewer than two numbers of tokens.
        """
        counts, ms = self.lines.get(_split(row.key)[0], ((), ()))
        if len(counts) < 2:
            return None
        right = min(max(bisect_right(counts, row.positions), 1), len(counts) - 1)
        left = right - 1
        slope = (ms[right] - ms[left]) / (counts[right] - counts[left])
        return max(0.0, ms[left] + slope * (row.positions - counts[left]))


def could_price(space: Measurable, wanted: Iterable[Row]) -> bool:
    """Whether a table of the space would have a price for each row: among its rows, or behind a pruning location between them."""
    rows = set(space.rows)
    kept = {(row.op, row.dims) for row in rows if ("kept", 1) in row.dims}
    return all(row in rows or (row.op, row.dims) in kept for row in wanted)


def filled(rows: Mapping[str, float], wanted: Iterable[Row]) -> dict[str, float]:
    """The ms of measured rows by key, and of those that are wanted besides, which lie between them."""
    kept, found = KeptRows._among(rows), dict(rows)
    for row in wanted:
        if row.key not in found:
            ms = kept.ms(row)
            assert ms is not None, f"the rows of the space price no {row.key}"
            found[row.key] = ms
    return found


def _split(key: str) -> tuple[str, int]:
    """A row's key without its positions, and they: `head@9[c=8]` is `head[c=8]` and 9."""
    op, _, rest = key.partition("@")
    positions, bracket, dims = rest.partition("[")
    return f"{op}{bracket}{dims}", int(positions)


def _line(points: list[tuple[int, float]]) -> Line:
    counts, ms = zip(*sorted(points), strict=True)
    return counts, ms
