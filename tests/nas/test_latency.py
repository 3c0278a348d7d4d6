import csv
import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.describe import describe
from nas.latency import LatencyTable, MissingLatency
from nas.table_file import Calibration, Content, Measurement, RowTime, Verdict, write
from nas.target import Target, fingerprint
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from tests.nas.toy import toy_space

SPACE = toy_space()
TARGET = Target.parse("cpu-ort-fp32-b1-t1")
TIMES = {row.key: 0.01 + 0.003 * i for i, row in enumerate(SPACE.rows)}
VERDICT = Verdict(0.01, 0.02, 0.1, 0, True, "fine")


def content(**changes: Any) -> Content:
    """A table of the toy space whose rows take known times."""
    whole = Content(
        space="hybrid_toy",
        classes=(4,),
        target=TARGET.name,
        fingerprint=fingerprint(TARGET),
        protocol={"visit_ms": 5.0},
        statistic="p20",
        calibration=Calibration(offset=0.05, scale=1.1, low=0.9, high=1.2, heldout_mape=0.02, nets=16),
        reference=json.loads(SPACE.smallest.to_json()),
        reference_ms=0.4,
        verdict=VERDICT,
        measurements=(Measurement(1_800_000_000, 40.0, 20, 0, 4, 45, VERDICT),),
        rows={key: RowTime(ms, ms, ms * 0.9, ms * 1.1, ms * 0.02, 20) for key, ms in TIMES.items()},
    )
    return replace(whole, **changes)


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    path = tmp_path / "hybrid_toy--cpu-ort-fp32-b1-t1--here"
    write(path, content())
    return path


def expected(arch: Arch) -> float:
    return 0.05 + 1.1 * sum(TIMES[row.key] for row in arch.rows)


def test_a_table_is_found_by_either_file_or_their_stem(stem: Path) -> None:
    tables = [LatencyTable.load(path) for path in (stem, Path(f"{stem}.csv"), Path(f"{stem}.json"))]
    assert all(table == tables[0] for table in tables)
    assert LatencyTable.load(str(stem)).rows.keys() == TIMES.keys()
    assert len(tables[0].id) == 12 and tables[0].target == TARGET and tables[0].reference == SPACE.smallest


def test_what_is_written_is_read_back_to_six_decimals(stem: Path) -> None:
    read = LatencyTable.load(stem).content
    assert replace(read, sha256="", rows={}) == content(rows={})
    for key, row in content().rows.items():
        assert astuple(read.rows[key]) == pytest.approx(astuple(row), abs=1e-6)
    assert Path(f"{stem}.csv").read_text().splitlines()[0] == "key,ms,median,p10,p90,mad,n"
    with Path(f"{stem}.csv").open(newline="") as file:
        keys = [cells[0] for cells in csv.reader(file)][1:]
    assert keys == sorted(TIMES)
    before = Path(f"{stem}.csv").read_bytes(), Path(f"{stem}.json").read_bytes()
    write(stem, read)
    assert (Path(f"{stem}.csv").read_bytes(), Path(f"{stem}.json").read_bytes()) == before


def test_a_prediction_is_the_calibrated_sum_of_rows_and_terms_add_up_to_it(stem: Path) -> None:
    table = LatencyTable.load(stem)
    rng = np.random.default_rng(0)
    for arch in [SPACE.smallest, SPACE.largest, *(SPACE.sample(rng) for _ in range(10))]:
        price = table.predict(arch)
        assert price.ms == pytest.approx(expected(arch))
        assert [price.low, price.high] == pytest.approx([0.9 * price.ms, 1.2 * price.ms])
        terms = table.terms(arch)
        assert len(terms) == len(arch.blocks) and sum(terms) + 0.05 == pytest.approx(price.ms)


def test_a_description_with_a_table_prices_every_block(stem: Path) -> None:
    arch = SPACE.largest
    found = describe(arch, LatencyTable.load(stem))
    assert (
        found["predicted_ms"] == pytest.approx(expected(arch)) and found["low"] < found["predicted_ms"] < found["high"]
    )
    offset = content().calibration.offset
    assert sum(block["ms"] for block in found["blocks"]) + offset == pytest.approx(found["predicted_ms"])


def test_codes_are_priced_as_their_networks(stem: Path) -> None:
    table, rng = LatencyTable.load(stem), np.random.default_rng(1)
    archs = [SPACE.sample(rng) for _ in range(7)]
    codes = np.array([SPACE.encode(arch) for arch in archs])
    assert table.predict_many(codes, SPACE) == pytest.approx([expected(arch) for arch in archs])
    assert table.predict_many(codes[:0], SPACE).shape == (0,)
    with pytest.raises(InputError, match="hybrid_toy"):
        table.predict_many(codes)  # a space that the product does not know


def test_missing_rows_are_named_with_the_command_that_measures_them(stem: Path) -> None:
    table = LatencyTable.load(stem)
    with pytest.raises(MissingLatency) as caught:
        table.predict(toy_space(classes=7).smallest)
    message = str(caught.value)
    assert "classes=7" in message and "\n" not in message
    assert "nas measure --space hybrid_toy --target cpu-ort-fp32-b1-t1 --classes 7" in message
    wide = [key for key in TIMES if "c=16" in key]
    write(stem, content(rows={key: row for key, row in content().rows.items() if key not in wide}))
    with pytest.raises(MissingLatency, match=r"and \d+ more; .*t1`$"):
        LatencyTable.load(stem).terms(SPACE.largest)


def test_a_table_of_another_machine_loads_but_is_not_taken_for_this_one(stem: Path) -> None:
    LatencyTable.load(stem).check_machine()
    write(stem, content(fingerprint=fingerprint(TARGET) | {"cpu": "Z80", "runtime": "onnxruntime 0.1"}))
    table = LatencyTable.load(stem)
    with pytest.raises(InputError, match=r"cpu Z80 there.*runtime onnxruntime 0.1 there.*--foreign-table"):
        table.check_machine()
    table.check_machine(foreign=True)
