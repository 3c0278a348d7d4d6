"""Pricing codes without their networks: the same milliseconds as one by one, for every space."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nas.latency import LatencyTable, MissingLatency
from nas.table_file import Calibration, RowTime
from search_spaces import SPACES
from search_spaces.blocks import Row
from search_spaces.errors import InputError
from search_spaces.factors import Factor, Factors
from search_spaces.space import Choice, Space
from tests.nas.test_latency import content

CALIBRATION = Calibration(offset=0.05, scale=1.1)


def rows_of(terms: Sequence[Factor], code: NDArray[np.int64]) -> list[Row]:
    """The rows of a code's network, with repeats, as the terms of its space add them up."""
    known: dict[Factor, int] = {}

    def index(factor: Factor) -> int:
        if factor not in known:
            if factor.table is None:
                known[factor] = int(code[factor.position])
            else:
                known[factor] = int(factor.table[tuple(index(source) for source in factor.sources)])
        return known[factor]

    return [row for term in terms for row in term.values[index(term)]]


def table_of(space: Space, lost: str | None = None) -> LatencyTable:
    """A time for every row, but for those whose kind is `lost`."""
    times = {row.key: RowTime(0.01 + 0.003 * i, 1, 1, 1, 0, 20) for i, row in enumerate(space.rows) if row.op != lost}
    made = content(rows=times, space=space.name, classes=(space.classes,))
    return LatencyTable(replace(made, calibration=CALIBRATION), Path("table"))


def between_kept(space: Space) -> LatencyTable:
    """A table whose rows behind pruning locations lack, of every three or more numbers of tokens, one in the middle."""
    counts: dict[tuple[str, tuple[tuple[str, int], ...]], list[int]] = {}
    for row in sorted(space.rows):
        if ("kept", 1) in row.dims:
            counts.setdefault((row.op, row.dims), []).append(row.positions)
    lost = {row.key for row in space.rows if row.positions in counts.get((row.op, row.dims), [])[1:-1]}
    whole = table_of(space)
    left = {key: time for key, time in whole.rows.items() if key not in lost}
    assert lost and len(left) == len(whole.rows) - len(lost)
    return LatencyTable(replace(whole.content, rows=left), whole.path)


def codes_of(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Any codes in range, few of them canonical."""
    limits = [len(choice.values) for choice in space.choices]
    return np.random.default_rng(seed).integers(0, limits, (count, len(limits)))


@pytest.fixture(params=SPACES, scope="module")  # its terms may take seconds to work out
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]()


def test_codes_are_priced_as_their_networks_are(space: Space) -> None:
    table, codes = table_of(space), codes_of(space, 300)
    canonical = [space.encode(space.sample(np.random.default_rng(seed))) for seed in range(20)]
    ends = [space.encode(space.smallest), space.encode(space.largest)]
    codes = np.concatenate([codes, canonical, ends])
    expected = [table.predict(space.decode(code)).ms for code in codes]
    assert table.predict_many(codes, space) == pytest.approx(expected, rel=1e-9)
    assert table.predict_many(codes.astype(np.uint8), space) == pytest.approx(expected, rel=1e-9)


def test_terms_are_the_rows_of_every_code(space: Space) -> None:
    assert space.terms is not None
    for code in codes_of(space, 50, seed=1):
        assert sorted(rows_of(space.terms, code)) == sorted(space.decode(code).rows)


def test_numbers_of_kept_patches_that_were_not_measured_are_priced_as_predict_does() -> None:
    space = SPACES["vit_digits"]()
    table, codes = between_kept(space), codes_of(space, 300, seed=2)
    archs = [space.decode(code) for code in codes]
    assert any(table.unmeasured(arch.rows) for arch in archs)
    assert table.predict_many(codes, space) == pytest.approx([table.predict(arch).ms for arch in archs], rel=1e-9)


def test_it_makes_no_difference_in_how_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SPACES["vit_digits"]()
    table, codes = table_of(space), codes_of(space, 1000)
    whole = table.predict_many(codes, space)
    monkeypatch.setattr("nas.latency.CHUNK", 333)
    assert np.array_equal(table.predict_many(codes, space), whole)

    def chunks() -> Iterator[np.ndarray]:
        yield codes[:10]
        yield codes[10:]

    assert np.array_equal(np.concatenate([*table.predict_chunks(chunks(), space)]), whole)
    assert table.predict_many(codes[:0], space).shape == (0,)


def test_rows_that_are_missing_are_named_where_a_code_needs_them() -> None:
    space = SPACES["hybrid_digits"]()
    table, codes = table_of(space, lost="mb3d.nll"), codes_of(space, 200)
    fine = np.array([not any(row.op == "mb3d.nll" for row in space.decode(code).rows) for code in codes])
    assert 0 < fine.sum() < len(fine)
    expected = [table.predict(space.decode(code)).ms for code in codes[fine]]
    assert table.predict_many(codes[fine], space) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(MissingLatency, match=r"lacks .*mb3d\.nll@"):
        table.predict_many(codes, space)


def test_codes_that_are_none_are_refused() -> None:
    space = SPACES["vit_digits"]()
    table, codes = table_of(space), codes_of(space, 5)
    codes[3, 2] = 99
    with pytest.raises(InputError, match=r"code position 2 .* holds 99"):
        table.predict_many(codes, space)
    codes[3, 2] = -1
    with pytest.raises(InputError, match=r"code position 2 .* holds -1"):
        table.predict_many(codes.astype(np.int8), space)
    with pytest.raises(InputError, match="whole numbers of shape"):
        table.predict_many(codes[:, 1:], space)
    with pytest.raises(InputError, match="got float64"):
        table.predict_many(codes.astype(float), space)


def test_a_factor_of_too_many_combinations_is_refused() -> None:
    factors = Factors([Choice(f"c{i}", tuple(range(100))) for i in range(3)])
    with pytest.raises(ValueError, match="derive others between"):
        factors.derive(lambda a, b, c: a + b + c, *(factors[f"c{i}"] for i in range(3)))
