"""The tables that ship load, price their whole space, and say whose machine they are from."""

from pathlib import Path

import numpy as np
import pytest

from latency_tables import SHIPPED
from nas.latency import LatencyTable
from nas.plan import rows_to_time
from search_spaces import InputError

TABLES = sorted(SHIPPED.glob("*.csv"))


def test_there_are_some() -> None:
    assert TABLES


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_it_prices_its_space(path: Path) -> None:
    table = LatencyTable.load(path)
    space, rng = table.open_space(), np.random.default_rng(0)
    assert not table.unmeasured(rows_to_time(space, table.target.thresholds))
    assert table.verdict["good"]
    for arch in (space.smallest, space.largest, *(space.sample(rng) for _ in range(20))):
        price = table.predict(arch)
        assert 0 < price.low <= price.ms <= price.high
        assert sum(table.terms(arch)) + table.content.calibration.offset == pytest.approx(price.ms)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_another_machine_is_refused_unless_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LatencyTable.load(path)
    monkeypatch.setattr("nas.latency.fingerprint", lambda target: {**table.content.fingerprint, "cpu": "abacus"})
    table.check_machine(foreign=True)
    with pytest.raises(InputError, match=r"cpu .* there, abacus here.*--foreign-table"):
        table.check_machine()
