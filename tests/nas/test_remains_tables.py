"""Tables of what may be left of a network: they tell which network, so that they can be validated. Times are made up."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.cli.main import main
from nas.cost import macs
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.table_file import read, write
from nas.tables import tables_dir
from nas.target import Target
from nas.validate import validate
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from search_spaces.spaces.remains import Remains
from tests.nas.made_up import taking

TARGET = Target.parse("cpu-ort-fp32-b1-t1")
BLOCK = MB3D(2, 16, 16, 40 / 48, residual="plain", bias=False, eps=1e-12)  # figures that six decimals do not hold
ARCH = Arch(32, 3, (Patch(48, 8), ClassToken(), Position(), *[BLOCK] * 3, Head(4, pool="token")))


@pytest.fixture(autouse=True)
def no_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A million MACs take a millisecond."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    with taking(lambda arch: 0.1 + macs(arch) / 1e6):
        yield


def test_a_table_tells_of_which_network_it_is() -> None:
    table = measure_table(Remains(ARCH, ("heads",)), TARGET, tables_dir(), rounds=4)
    space = table.open_space()
    assert isinstance(space, Remains) and space.name == table.content.space
    assert space.arch == ARCH and space.parts == {"heads"}
    more = measure_table(Remains(ARCH, ("neurons",)), TARGET, tables_dir(), rounds=4)
    space = more.open_space()
    assert more.rows.keys() > table.rows.keys() and isinstance(space, Remains) and space.parts == {"neurons"}
    assert validate(more, 4, seed=0)["mape"] < 0.05
    with pytest.raises(InputError, match=r"lacks \d rows .*; `nas prune` of the table's network with --target"):
        more.predict(ARCH.with_classes(7))
    with pytest.raises(InputError, match=f"networks of {space.name} have no codes"):
        more.predict_many(np.zeros((1, 3), np.int64))


def test_the_command_validates_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = measure_table(Remains(ARCH, ("heads",)), TARGET, tables_dir(), rounds=4)
    monkeypatch.setattr("sys.argv", ["nas", "validate", table.path.name, "--nets", "3", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and json.loads(capsys.readouterr().out)["nets"] == 3


def test_one_from_before_loads_and_says_what_it_lacks() -> None:
    stem = measure_table(Remains(ARCH, ("heads",)), TARGET, tables_dir(), rounds=4).path
    write(stem, replace(read(stem), remains_of=None))
    with pytest.raises(InputError, match=f"remove its files, and `nas prune` with --target {TARGET.name}") as found:
        LatencyTable.load(stem).open_space()
    assert "\n" not in str(found.value)
