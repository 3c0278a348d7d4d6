"""What a cascade costs as far as each exit, by a table whose rows are measured where its stages run. Times are made up, but for one."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.cascade.costs import check_shares, until_macs, until_ms
from nas.cost import macs
from nas.data import DATASETS
from nas.latency import LatencyTable, MissingLatency
from nas.launch.export import export_network
from nas.measure import measure_table
from nas.networks import network_named
from nas.runs import Run
from nas.runtimes import RUNTIMES
from nas.table_file import write
from nas.tables import space_of, tables_dir
from nas.target import Target
from nas.train.retrain import fresh_network
from nas.validate import validate
from search_spaces import Arch, Cascade, InputError
from search_spaces.blocks import Row
from search_spaces.cascade import linked
from search_spaces.spaces.exits import Exits
from tests.cli.running import printed as nas
from tests.nas.made_up import taking
from tests.nas.test_cascade import vit
from tests.nas.test_latency import content
from tests.nas.toy import toy

TARGET = Target.parse("cpu-ort-fp32-b4-t1")
CASCADE = linked([vit(16), vit(8), vit(4)])
FIXED = 0.1  # ms of any network


def row_ms(row: Row) -> float:
    """So that rows differ by more than their work, and telling logits takes time."""
    dims = dict(row.dims)
    return 1e-4 * row.positions * (3 if "told" in dims else 1) * (2 if "relations" in dims else 1) + 1e-3 * len(row.op)


def ms(arch: Arch) -> float:
    return FIXED + math.fsum(map(row_ms, arch.rows))


@pytest.fixture(autouse=True)
def no_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(DATASETS, "toy", lambda path, image_size, seed: toy(64))
    with taking(ms):
        yield


@pytest.fixture
def arch_file(tmp_path: Path) -> Path:
    path = tmp_path / "cascade.json"
    path.write_text(CASCADE.to_json())
    return path


def test_exits_are_timed_where_they_stand() -> None:
    """Behind the stages that theirs reuses, and telling what the next one asks of it."""
    space = Exits(CASCADE)
    first, both, every = (CASCADE.until(number) for number in range(3))
    assert isinstance(first, Cascade) and first.told and first.stages == CASCADE.stages[:1]
    assert isinstance(both, Cascade) and both.told and every == CASCADE
    assert {first, both, every} <= {*space.probes()}
    assert {row for probe in space.probes() for row in probe.rows} == {*CASCADE.rows} == {*space.rows}
    assert all(Arch.from_json(probe.to_json()) == probe for probe in space.probes())
    told = {row.positions for row in space.rows if ("told", 1) in row.dims}
    assert told == {5, 17}, "of the first and the second stage, but not of the last"
    assert len({space.sample(np.random.default_rng(seed)) for seed in range(40)}) == 6
    outputs = [len(network.build()(network.example())) for network in (first, both, every)]
    assert outputs == [2, 3, 3], "logits of each exit, and relations behind them"


def test_cascades_that_ask_for_nothing_begin_with_plain_networks() -> None:
    apart = linked([vit(16), vit(8)], features=False, relations=False)
    assert apart.until(0) == apart.stages[0] and apart.until(1) == apart
    assert linked([vit(16), vit(8)], relations=False).until(0) == vit(16)
    one = replace(vit(16), blocks=(*vit(16).blocks[:3], *vit(16).blocks[4:]))
    deeper = Exits(linked([one, one])).probes()
    assert max(len(probe.blocks) for probe in deeper) == 12, "a block is told from the rest by a second one"


def test_a_table_of_exits_prices_each_and_is_validated() -> None:
    table = measure_table(space_of(CASCADE), TARGET, tables_dir(), rounds=2)
    wanted = [ms(CASCADE.until(number)) for number in range(3)]
    assert until_ms(CASCADE, table) == pytest.approx(wanted, rel=0.01)
    assert until_ms(CASCADE, table)[-1] == pytest.approx(table.predict(CASCADE).ms)
    own = sum(row_ms(row) for spec, state in CASCADE.steps()[4:5] for row in spec.rows(state))
    assert table.terms(CASCADE)[4] == pytest.approx(own, rel=0.05), "a block of the first stage"
    space = LatencyTable.load(table.path).open_space()
    assert isinstance(space, Exits) and space.cascade == CASCADE
    assert validate(table, 4, seed=0)["mape"] < 0.02
    with pytest.raises(MissingLatency, match="it is of one cascade's exits; give the table of a space"):
        table.predict(vit(2))


def test_describe_measures_what_is_missing_and_tells_the_mean(arch_file: Path) -> None:
    found = nas("describe", arch_file, "--target", TARGET.name, "--shares", "0.5,0.3,0.2")
    wanted = [ms(CASCADE.until(number)) for number in range(3)]
    assert [own["ms"] for own in found["exits"]] == pytest.approx(wanted, rel=0.01)
    assert [own["macs"] for own in found["exits"]] == until_macs(CASCADE).tolist()
    assert found["mean_ms"] == pytest.approx(float(np.dot(wanted, (0.5, 0.3, 0.2))), rel=0.01)
    assert found["mean_macs"] == pytest.approx(float(until_macs(CASCADE) @ (0.5, 0.3, 0.2)))
    (table,) = tables_dir().glob("exits-*.json")
    again = nas("describe", arch_file, "--table", table)
    assert again["exits"] == found["exits"] and "mean_ms" not in again
    without = nas("describe", arch_file, "--shares", "0,0,1")
    assert without["mean_ms"] is None and without["mean_macs"] == macs(CASCADE)


def test_calibration_holds_a_budget_of_the_target(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", "cascade", {}, resume=False)
    run.save_network(CASCADE, fresh_network(CASCADE, 0).state_dict())
    words = ("cascade", "calibrate", run.path, "--data", "toy")
    costs = np.array([ms(CASCADE.until(number)) for number in range(3)]) / TARGET.batch
    budget = float(costs.mean())
    found = nas(*words, "--target", TARGET.name, "--budget-ms", budget)
    assert found["costs"] == pytest.approx(costs.tolist(), rel=0.01), "of an image, in batches of four"
    assert found["val_cost"] <= budget and found["val_cost"] == pytest.approx(budget, rel=0.05)
    assert (found["unit"], found["target"], found["batch"], found["threads"]) == ("ms", TARGET.name, 4, 1)
    (table,) = tables_dir().glob("exits-*.json")
    assert found["table"] == {"name": table.stem, "id": LatencyTable.load(table).id}
    assert json.loads((run.path / "thresholds.json").read_text()) == found
    assert nas(*words, "--table", table, "--budget-ms", budget) == found
    for more, message in (
        (("--budget-macs", 1e6), "--table and --target price milliseconds; give --budget-ms"),
        (("--budget-ms", 1, "--batch", 8), "--batch and --threads are of torch, a target has its own"),
        (("--budget-ms", 1, "--threads", 2), "--batch and --threads are of torch, a target has its own"),
    ):
        with pytest.raises(InputError, match=message):
            nas(*words, "--table", table, *more)


@pytest.mark.slow
def test_exported_exits_are_priced_by_a_table_of_them(arch_file: Path, tmp_path: Path) -> None:
    table = measure_table(space_of(CASCADE), TARGET, tables_dir(), rounds=2)
    found = export_network(str(arch_file), "onnx", None, table.path, tmp_path / "files", 0, dataset="toy")
    assert [own["predicted_ms"] for own in found["exits"]] == pytest.approx(until_ms(CASCADE, table).tolist())
    assert found["predicted_ms"] == found["exits"][-1]["predicted_ms"] and found["images"] > 32
    assert all(own["measured_ms"] > 0 and own["top1_agreement"] > 0.99 for own in found["exits"])


def test_tables_of_other_networks_say_how_to_measure_a_cascade(arch_file: Path, tmp_path: Path) -> None:
    write(tmp_path / "table", content())
    with pytest.raises(MissingLatency, match="pass --target cpu-ort-fp32-b1-t1 in its place, which measures those of"):
        nas("describe", arch_file, "--table", tmp_path / "table")


def test_bad_shares_are_refused_before_anything_is_measured(arch_file: Path) -> None:
    for shares, message in (
        ("0.5,0.5", "takes a share for each of 3 exits, together 1, got 0.5,0.5"),
        ("0.5,0.5,0.5", "takes a share for each of 3 exits, together 1"),
        ("0.5,0.6,-0.1", "takes fractions from 0 to 1"),
        ("nan,0.5,0.5", "takes fractions from 0 to 1"),
        ("a,b,c", "takes fractions such as 0.5,0.3,0.2, got 'a,b,c'"),
    ):
        with pytest.raises(InputError, match=message):
            nas("describe", arch_file, "--target", TARGET.name, "--shares", shares)
    assert not tables_dir().exists()
    with pytest.raises(InputError, match="--shares are of a cascade's exits, and this network has one exit"):
        check_shares((1.0,), vit(8))


def test_beginnings_of_cascades_are_no_networks_to_work_with(tmp_path: Path) -> None:
    path = tmp_path / "beginning.json"
    path.write_text(CASCADE.until(0).to_json())
    with pytest.raises(InputError, match="is the beginning of a cascade, as tables time it; give the whole cascade"):
        network_named(str(path), cascades=True)
    with pytest.raises(InputError, match="told must be true or false, got 1"):
        Arch.from_json(path.read_text().replace('"told": true', '"told": 1'))


@pytest.mark.parametrize("runtime", ["ort", "eager"])
def test_runtimes_time_them(runtime: str) -> None:
    resizing = linked([replace(vit(8), image_size=16), vit(8)])
    target = Target("cpu", runtime, "fp32", 2, 1)
    for network in (resizing.until(0), resizing):
        session = RUNTIMES[runtime].from_arch(network, target)
        assert min(session.time(2)) > 0
        session.close()
