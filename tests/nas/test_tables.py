"""Which space's table prices a network."""

import math
from pathlib import Path

import numpy as np
import pytest

from latency_tables import SHIPPED
from nas.latency import LatencyTable, MissingLatency
from nas.one_network import OneNetwork
from nas.tables import space_of, tables_dir
from nas.target import Target
from nas.validate import validate
from search_spaces import InputError, zoo
from search_spaces.arch import Arch
from search_spaces.blocks import (
    MB3D,
    MB4D,
    ClassToken,
    Embed,
    Head,
    InvertedResidual,
    Patch,
    Position,
    Row,
    Stem,
    TokenPrune,
)
from tests.cli.running import printed as nas
from tests.nas.made_up import taking


@pytest.mark.parametrize(
    ("name", "space"),
    [("efficientformer_l3", "hybrid"), ("deit_small_patch16_224", "vit"), ("asvit_deit_base", "vit")],
)
def test_published_networks_have_prices(name: str, space: str) -> None:
    """With thresholds too, whatever they have come to keep on average."""
    arch = zoo.arch(name)
    assert space_of(arch).name == space
    if arch.locations:
        assert space_of(arch.keeping([150, 99, 20])).name == space


PLAIN = MB3D(3, 8, 8, 2, bias=False)
STRANGE = Arch(32, 3, (Stem(8), MB4D(), MB4D(), InvertedResidual(8, 1, 3), Embed(24), MB4D(3), Head(2)))
TARGET = Target.parse("cpu-ort-fp32-b1-t1")


def row_ms(row: Row) -> float:
    return 1e-4 * row.positions + 1e-3 * len(row.op)


def ms(arch: Arch) -> float:
    return 0.1 + math.fsum(map(row_ms, arch.rows))


@pytest.mark.parametrize(
    "name", ["sret_t", "sret_s", "mobile_former_26m", "mobile_former_96m", "mobile_former_508m", "mobilevit_s"]
)
def test_every_published_network_has_a_space(name: str) -> None:
    """Of its own where no other has its rows: probes have each of them, and there are networks to calibrate on."""
    arch = zoo.arch(name)
    space = space_of(arch)
    assert {*arch.rows} <= {*space.rows} <= {row for probe in space.probes() for row in probe.rows}
    if isinstance(space, OneNetwork):
        drawn = {space.sample(np.random.default_rng(seed)) for seed in range(40)}
        assert len(drawn) > 3 and arch in drawn and arch not in space.probes()
        assert {row for one in drawn for row in one.rows} == {*space.rows}


def test_a_network_that_no_space_has_is_one_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.json").write_text(STRANGE.to_json())
    with taking(ms):
        found = nas("describe", tmp_path / "a.json", "--target", TARGET.name)
        assert found["predicted_ms"] == pytest.approx(ms(STRANGE), rel=0.01)
        (path,) = tables_dir().glob("network-*.json")
        table = LatencyTable.load(path)
        space = table.open_space()
        assert isinstance(space, OneNetwork) and space.arch == STRANGE
        assert validate(table, 4, seed=0)["mape"] < 0.02
    assert nas("describe", tmp_path / "a.json", "--table", path)["predicted_ms"] == found["predicted_ms"]
    with pytest.raises(MissingLatency, match="is of one network alone; pass --target cpu-ort-fp32-b1-t1 in its place"):
        table.predict(zoo.arch("deit_tiny_patch16_224"))


def test_what_a_tables_space_does_not_have_is_measured_by_target() -> None:
    """`nas measure` of the space would not add it."""
    table = LatencyTable.load(next(SHIPPED.glob("hybrid--cpu-ort-fp32-b1-t1--*.csv")))
    with pytest.raises(MissingLatency, match="the space hybrid has none such; pass --target cpu-ort-fp32-b1-t1"):
        table.predict(zoo.arch("sret_t"))


def test_networks_that_are_too_short_for_a_table_have_none() -> None:
    with pytest.raises(InputError, match="too few blocks that can be repeated for a table of its own"):
        space_of(Arch(32, 3, (Stem(8), Head(2))))


def test_networks_that_drop_patches_outside_every_space_have_none() -> None:
    patches = (
        Patch(24, 8),
        ClassToken(),
        Position(),
        PLAIN,
        TokenPrune(4),
        PLAIN,
        Head(2, pool="token"),
    )
    with pytest.raises(InputError, match="drops patches and is in no space"):
        space_of(Arch(32, 3, patches))
