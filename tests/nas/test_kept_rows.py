"""Prices of networks that drop tokens, from tables in which few numbers of tokens were measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nas.kept_rows import filled
from nas.latency import LatencyTable, MissingLatency
from nas.measure import measure_table
from nas.table_file import RowTime
from search_spaces import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position, Row
from search_spaces.spaces.remains import Remains
from tests.nas.test_latency import content
from tests.nas.test_measure import TARGET
from tests.search_spaces.test_token_prune import hybrid, vit

MEASURED = ((40, 20), (32, 10), (10, 10))


def ms(row: Row) -> float:
    """A true time: bent, so that the line between two counts is not that between two others."""
    return 0.01 + 1e-4 * row.positions + 1e-6 * row.positions**2 * len(row.dims)


def table(*archs: Arch, **times: float) -> LatencyTable:
    """A table in which the rows of `archs` take known times."""
    rows = {row.key: times.get(row.key, ms(row)) for arch in archs for row in arch.rows}
    return LatencyTable(content(rows={key: RowTime(t, t, t, t, 0.0, 1) for key, t in rows.items()}), Path("hand-made"))


def line(row: Row, left: int, right: int) -> float:
    ends = [ms(Row(row.op, count, row.dims)) for count in (left, right)]
    return ends[0] + (ends[1] - ends[0]) * (row.positions - left) / (right - left)


@pytest.mark.parametrize(("count", "left", "right"), [(15, 10, 20), (33, 32, 40), (50, 32, 40), (4, 10, 20)])
def test_a_kept_row_lies_between_its_measured_neighbours_and_on_the_end_segments_beyond(
    count: int, left: int, right: int
) -> None:
    made = [hybrid(keeps, False) for keeps in MEASURED]
    block = MB3D(2, 8, 8, 2, layer_scale=0.5)
    rows = block.rows(hybrid((count, 1), False).states[3])
    assert [row.positions for row in rows] == [count, count]
    found = table(*made)._block(block, hybrid((count, 1), False).states[3])
    assert found == pytest.approx(sum(line(row, left, right) for row in rows))


def test_measured_rows_are_priced_as_measured_and_no_price_falls_below_0() -> None:
    made = [hybrid(keeps, False) for keeps in MEASURED]
    exact = table(*made)
    for arch in made:
        assert exact.predict(arch).ms == pytest.approx(0.05 + 1.1 * sum(ms(row) for row in arch.rows))
    steep = table(*made, **{row.key: 0.0 for arch in made for row in arch.rows if row.positions == 10})
    assert steep.terms(hybrid((40, 1), False))[-2:] == (0.0, 0.0), "ffn, attention and head go on downwards from 10"


def test_only_rows_behind_a_location_are_interpolated_and_from_two_counts_on() -> None:
    dense = Row("mb3d.ffn", 40, (("c", 16), ("hidden", 32)))
    known = table(*(hybrid(keeps, False) for keeps in MEASURED))
    assert known.unpriced([dense]) == known.unmeasured([dense]) == (dense,)
    kept = Row("mb3d.ffn", 41, (*dense.dims, ("kept", 1)))
    assert known.unpriced([kept]) == () and known.unmeasured([kept, kept]) == (kept,)
    other = Row("mb3d.ffn", 41, (("c", 16), ("hidden", 33), ("kept", 1)))
    assert known.unpriced([other]) == (other,)
    once = table(hybrid((40, 40), False))
    assert once.unpriced([kept]) == (kept,)
    with pytest.raises(MissingLatency, match="kept=1"):
        once.predict(hybrid((40, 20), False))
    with pytest.raises(MissingLatency, match="kept=1"):
        once.curve(hybrid((40, 40), False))


def test_marks_are_told_from_dims_that_end_alike() -> None:
    rows = [Row("a", n, (("unkept", 1),)) for n in (1, 3)] + [Row("a", n, (("kept", 12),)) for n in (1, 3)]
    found = LatencyTable(content(rows={row.key: RowTime(1, 1, 1, 1, 0, 1) for row in rows}), Path("hand-made"))
    between = [Row("a", 2, row.dims) for row in rows[::2]]
    assert found.unpriced(between) == tuple(between)


@pytest.mark.parametrize("make", [hybrid, vit])
@pytest.mark.parametrize("adaptive", [False, True])
def test_prices_of_counts_are_predictions_of_the_networks_that_keep_so_many(make: type, adaptive: bool) -> None:
    arch: Arch = make((30, 15), adaptive)
    known = table(*(make(keeps, adaptive) for keeps in MEASURED))
    counts = np.array([[40, 20], [30, 15], [64, 64], [33, 1], [1, 1]])
    wanted = [known.predict(arch.keeping([int(n) for n in own])).ms for own in counts]
    assert known.price_counts(arch, counts) == pytest.approx(wanted)
    assert known.price_counts(arch, counts[:0]).shape == (0,)
    columns = [torch.tensor(column, dtype=torch.float32, requires_grad=True) for column in counts.T]
    cost = known.curve(arch)(columns)
    assert cost.tolist() == pytest.approx(wanted, rel=1e-5)
    cost.sum().backward()
    step = np.diff(known.price_counts(arch, np.array([[30, 15], [30, 16]])))
    assert columns[1].grad is not None
    assert columns[1].grad[1].item() == pytest.approx(step[0], rel=1e-3)


def test_networks_that_drop_nothing_have_no_curve() -> None:
    dense = Arch(32, 3, tuple(spec for spec in hybrid((9, 4), False).blocks if spec.kind != "token_prune"))
    with pytest.raises(ValueError, match="no pruning location"):
        table(dense).curve(dense)
    known = table(*(hybrid(keeps, False) for keeps in MEASURED))
    with pytest.raises(ValueError, match="2 locations need as many"):
        known.price_counts(hybrid((9, 4), False), np.array([[1]]))


def test_networks_for_calibration_are_priced_between_measured_rows() -> None:
    rows = {row.key: ms(row) for keeps in MEASURED for row in hybrid(keeps, False).rows}
    drawn = hybrid((36, 15), False)
    found = filled(rows, drawn.rows)
    assert found.items() >= rows.items() and not found.keys() - rows.keys() - {row.key for row in drawn.rows}
    for row in drawn.rows:
        if row.key not in rows:
            assert found[row.key] == pytest.approx(line(row, *((10, 20) if row.positions == 15 else (32, 40))))
    with pytest.raises(AssertionError, match="price no mb4d"):
        filled(rows, [Row("mb4d", 3, ())])


@pytest.mark.slow
def test_a_table_of_what_may_be_left_is_calibrated_on_any_number_of_patches(tmp_path: Path) -> None:
    block = MB3D(1, 8, 8, 1, residual="plain", bias=False)
    arch = Arch(32, 3, (Patch(16, 8), ClassToken(), Position(), block, block, block, Head(4, pool="token")))
    remains = Remains(arch, ("tokens",))
    found = measure_table(remains, TARGET, tmp_path, rounds=2)
    drawn = [remains.sample(np.random.default_rng(seed)) for seed in range(20)]
    between = [one for one in drawn if found.unmeasured(one.rows)]
    assert between and all(found.predict(one).ms > 0 for one in between)
