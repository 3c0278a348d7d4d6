"""The networks that ship: they are what is told of them, small, and known by name wherever a network is named."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import compress
from latency_tables import SHIPPED as TABLES
from nas import data as datasets
from nas.cli.main import main
from nas.cost import macs, params
from nas.evaluate import correct
from nas.networks import network_named
from nas.runs import read_arch
from nas.shipped import NAMES, SHIPPED, shipped_network
from nas.train.teachers import teacher_named
from search_spaces import zoo
from search_spaces.errors import InputError
from search_spaces.spaces.remains import Remains
from tests.cli.running import nas
from tests.nas.made_up import taking

ROOT = Path(__file__).parents[2]
TOLD = json.loads((ROOT / "results" / "pretrained.json").read_text())


def test_all_of_them_are_told_of_and_the_package_holds_no_others() -> None:
    files = {path.name for path in SHIPPED.iterdir() if path.suffix in (".json", ".safetensors")}
    assert files == {f"{name}{suffix}" for name in NAMES for suffix in (".json", ".safetensors")}
    assert TOLD.keys() == {*NAMES} and not {*NAMES} & {*zoo.names()}


@pytest.mark.parametrize("name", NAMES)
def test_its_files_are_those_that_were_told_of(name: str) -> None:
    told, named = TOLD[name], network_named(name)
    assert (SHIPPED / f"{name}.safetensors").stat().st_size == told["bytes"] < 2_000_000
    assert named.arch == read_arch(SHIPPED / f"{name}.json") and named.arch.id == told["arch"]
    assert (params(named.arch), macs(named.arch)) == (told["params"], told["macs"])
    assert f"nas/shipped/{name}.json" in told["command"] and f"--data {told['data']}" in told["command"]
    assert len(Remains(named.arch).rows) > 10, "it can be pruned"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_good_as_was_told(name: str) -> None:
    """One image in 500 may fall the other way where another CPU rounds otherwise."""
    told, network = TOLD[name], shipped_network(name)
    assert not network.training
    first = told["val_first"]
    found = correct(network, datasets.load(told["data"]), "val", first["images"])
    assert abs(int(found.sum()) - first["correct"]) <= 1
    assert told["val_acc"] == pytest.approx(first["correct"] / first["images"], abs=0.04)


def test_the_distribution_takes_them_along() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    taken = setup["package-data"]["nas.shipped"]
    assert all(any(path.match(pattern) for pattern in taken) for path in SHIPPED.iterdir() if path.stem in NAMES)


def test_commands_know_it_by_name() -> None:
    assert nas("describe", "digits_vit")["params"] == TOLD["digits_vit"]["params"]
    first = TOLD["digits_vit"]["val_first"]
    flags = ("--data", "digits64", "--split", "val", "--limit", first["images"])
    found = nas("evaluate", "digits_vit", *flags)
    assert found["images"] == first["images"]
    assert found["acc"] == pytest.approx(first["correct"] / first["images"], abs=1.5 / first["images"])
    line = nas("evaluate", "contours_vit", *flags, code=2)
    assert "contours_vit tells 16 classes apart, digits64 has 10" in line


def test_it_teaches_by_name() -> None:
    data = datasets.load("digits64")
    teacher = teacher_named("digits_vit", data)
    images, labels = next(iter(data.loader("val", 100, limit=100)))
    with torch.no_grad():
        agreement = (teacher.network(images).argmax(1) == labels).float().mean()
    assert teacher.classes == 10 and agreement > 0.9


def test_a_name_that_is_none_is_told_those_that_ship() -> None:
    with pytest.raises(InputError, match="with weights there ship contours_vit, digits_vit; zoo names: ") as found:
        network_named("digit_vit")
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="digits_vit is none; give the checkpoint's path alone"):
        network_named("digits_vit", weights=SHIPPED / "digits_vit.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_third_of_its_work_is_spared(name: str) -> None:
    """Without training; what is left is still far above chance, and near the whole network."""
    network, data, cost = shipped_network(name), datasets.load(TOLD[name]["data"]), compress.Macs()
    images = [batch for batch, _ in data.loader("val", 64, limit=128)]
    found = compress.prune(network, cost, cost.total(network.arch) * 2 / 3, images, images=64)
    left = found.arch.build().eval()
    left.load_state_dict(found.weights)
    first = TOLD[name]["val_first"]
    assert macs(found.arch) < macs(network.arch) * 0.7
    assert correct(left, data, "val", first["images"]).sum() > 0.8 * first["correct"]


def test_pruning_knows_it_by_name(tmp_path: Path) -> None:
    table = next(TABLES.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.csv"))
    flags = ("--table", table, "--foreign-table", "--speedup", 1.5, "--out", tmp_path / "pruned")
    line = nas("prune", "digits_vit", "--data", "digits64", *flags, code=2)
    assert "rows of what may be left of digits_vit" in line


FILE = SimpleNamespace(ms=0.01, median=0.01)  # what one takes


def unconnected(*given: object) -> None:
    raise AssertionError("nothing is fetched")


@pytest.mark.slow
def test_the_command_prunes_it_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By times that are made up, so that no machine is too busy: a million MACs take a millisecond."""
    for name in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(name, unconnected)
    monkeypatch.setattr("nas.tables.tables_dir", lambda: tmp_path / "tables")
    monkeypatch.setattr("nas.pruning.files.retimed", lambda files, *how: [FILE for _ in files])
    out, command = tmp_path / "pruned", "nas prune digits_vit --data digits64 --target cpu-ort-fp32-b1-t1"
    flags = f"--parts heads,neurons --images 32 --speedup 1.2 --train-epochs 0 --out {out} --json"
    monkeypatch.setattr("sys.argv", [*command.split(), *flags.split()])
    with taking(lambda arch: 0.1 + macs(arch) / 1e6), pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    before, after = found["before"], found["after"]
    assert before["macs"] == TOLD["digits_vit"]["macs"] and after["measured_ms"] <= found["budget_ms"]
    assert found["speedup_measured"] >= 1.2 and after["acc"] > 0.8 * before["acc"] > 0.7
    assert found["onnx_top1_agreement"] > 0.99 and (out / "model.onnx").is_file()
    assert network_named(str(out)).arch.id == read_arch(out / "arch.json").id != TOLD["digits_vit"]["arch"]
