"""Networks exported in every format, in float and int8: the same scores, files that are whole, and one line for what cannot be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter
from typer.testing import CliRunner

import nas.runtimes
from nas.cli.main import app
from nas.data import load
from nas.export import check_file
from nas.formats import (
    FORMATS,
    NORMALISATION,
    file_target,
    is_exported,
    normalisation_of,
    open_exported,
    range_images,
    write_exported,
)
from nas.launch.evaluate import evaluate_network
from nas.launch.export import export_network
from nas.networks import Named, renormalised
from nas.runs import save_weights
from nas.runtimes import RUNTIMES
from nas.runtimes.onnxruntime import with_notes
from nas.runtimes.program import read_program
from nas.target import Target
from search_spaces import InputError
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, MB4D, Head, Stem
from tests.search_spaces.test_token_prune import vit

ARCH = Arch(16, 3, (Stem(8), MB4D(1), MB3D(2, 4, 8, 1, residual="coefficients"), Head(10)))
KINDS = [("onnx", False), ("onnx", True), ("openvino", False), ("openvino", True), ("pt2", False)]
IMAGES = ARCH.example(5, seed=3)  # not whole batches of two


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    made = ARCH.build().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return made


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_file_that_was_right_stays_where_a_new_one_is_not(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(ARCH.to_json())
    usual = file_target(form, False, None).name
    path = Path(export_network(str(tmp_path / "a.json"), form, usual, None, tmp_path / "out", 0)["path"])
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert path.name in before and path.parent == tmp_path / "out"
    monkeypatch.setattr("nas.export.MAX_DIFF", -1.0)
    with pytest.raises(InputError, match="gives other scores than the network"):
        export_network(str(tmp_path / "a.json"), form, usual, None, tmp_path / "out", 1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def target_of(form: str, int8: bool) -> Target:
    return replace(file_target(form, int8, None), batch=2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """A file of each kind, all in one folder."""
    out = tmp_path_factory.mktemp("files")
    return {
        (form, int8): write_exported(network(), form, target_of(form, int8), out, ARCH.example(8) if int8 else None)
        for form, int8 in KINDS
    }


@pytest.mark.parametrize(("form", "int8"), KINDS)
def test_a_file_gives_its_networks_scores(form: str, int8: bool, exported: dict[tuple[str, bool], Path]) -> None:
    path = exported[form, int8]
    assert is_exported(str(path)) and path.suffix == FORMATS[form].suffix and (".int8" in path.name) == int8
    with torch.no_grad():
        wanted = network()(IMAGES).numpy()
    checked = check_file(path, network(), IMAGES, target_of(form, int8))
    found = open_exported(path).run(IMAGES.numpy())
    assert checked.images == 5 and checked.max_abs_diff == pytest.approx(np.abs(found - wanted).max(), rel=0.1)
    if int8:
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99 and checked.max_abs_diff > 1e-4
    else:
        assert checked.max_abs_diff < 1e-5 and checked.top1_agreement == 1


def test_files_are_whole_and_nothing_lies_beside_them(exported: dict[tuple[str, bool], Path]) -> None:
    (folder,) = {path.parent for path in exported.values()}
    weights = {path.with_suffix(".bin") for (form, _), path in exported.items() if form == "openvino"}
    assert {*folder.iterdir()} == {*exported.values()} | weights


@pytest.mark.parametrize("form", ["openvino", "pt2"])
def test_a_file_of_another_network_is_removed(
    form: str, exported: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    made = exported[form, False]
    for part in (made, made.with_suffix(".bin")) if form == "openvino" else (made,):
        shutil.copy(part, tmp_path)
    path = tmp_path / made.name
    with pytest.raises(InputError, match="gives other scores than the network"):
        check_file(path, network(1), IMAGES, target_of(form, False))
    assert not [*tmp_path.iterdir()]


def test_a_file_in_float_is_not_run_as_one_in_int8(exported: dict[tuple[str, bool], Path]) -> None:
    for form in ("onnx", "openvino"):
        target = target_of(form, True)
        with pytest.raises(InputError, match=r"computes in float, and target .* takes files in int8"):
            RUNTIMES[target.runtime].from_file(exported[form, False], target)


@pytest.mark.parametrize(
    ("form", "int8", "target", "said"),
    [
        ("floppy", False, None, "no format called 'floppy'; known: onnx, openvino, pt2"),
        ("pt2", True, None, "pt2 files compute in float; leave out --int8, or pass --format onnx or openvino"),
        (
            "openvino",
            False,
            "cpu-ort-fp32-b1-t1",
            "by targets of openvino on a CPU, .*--target cpu-openvino-fp32-b1-t1",
        ),
        ("pt2", False, "cuda-eager-fp32-b1", "by targets of eager on a CPU, not of eager on cuda"),
        ("pt2", False, "cpu-eager-bf16-b2-t1", "in float, and .* times bf16; pass --target cpu-eager-fp32-b2-t1$"),
        ("onnx", True, "cpu-ort-fp32-b3-t1", "in int8, .*pass --target cpu-ort-int8-b3-t1, or leave out --int8"),
        ("onnx", False, "cpu-openvino-int8-b1-t1", "in float, .*pass --target cpu-openvino-fp32-b1-t1, or add --int8"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(form: str, int8: bool, target: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        file_target(form, int8, target)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(nas.runtimes, "version", version)
    for what in (lambda: file_target("openvino", False, None), lambda: open_exported(tmp_path / "a.xml")):
        with pytest.raises(InputError, match=r'openvino is not installed; pip install "vit-nas\[openvino\]"'):
            what()


def test_of_networks_with_thresholds_there_is_onnx_in_float_alone(tmp_path: Path) -> None:
    adaptive = vit((40, 20), True).build().eval()
    for form, int8 in KINDS[1:]:
        with pytest.raises(InputError, match="--static for the file of the network that keeps the mean numbers"):
            write_exported(adaptive, form, file_target(form, int8, None), tmp_path, None)
    assert not [*tmp_path.iterdir()]


def test_ranges_are_told_by_whole_batches_of_training_images() -> None:
    data = load("digits", image_size=32)
    assert [len(range_images(data, batch, 0)) for batch in (1, 24, 100)] == [64, 48, 100]
    with pytest.raises(InputError, match="fewer than a batch of 5000"):
        range_images(data, 5000, 0)


def test_images_are_normalised_as_the_network_was_trained() -> None:
    data = load("digits", image_size=32)
    images, wanted = IMAGES, ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    expected = (pixels - torch.tensor(wanted[0]).view(3, 1, 1)) / torch.tensor(wanted[1]).view(3, 1, 1)
    torch.testing.assert_close(Named(ARCH, normalisation=wanted).seen(images, data), expected)
    assert Named(ARCH).seen(images, data) is images


@pytest.mark.parametrize(("form", "int8"), KINDS)
def test_a_file_tells_how_its_images_are_normalised(
    form: str, int8: bool, exported: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """And is evaluated on such."""
    wanted, data = ((0.9, 0.1, 0.5), (0.1, 2.0, 0.5)), load("digits", image_size=16)
    made = network()
    ranges = ARCH.example(8) if int8 else None
    path = write_exported(made, form, target_of(form, int8), tmp_path, ranges, wanted)
    assert normalisation_of(path) == wanted and normalisation_of(exported[form, int8]) is None
    images, labels = next(iter(data.loader("val", 100, limit=100)))
    with torch.no_grad():
        classes = [made(renormalised(images, data, one)).argmax(1) for one in (wanted, None)]
    right, wrong = (float((own == labels).float().mean()) for own in classes)
    assert abs(right - wrong) > 0.02
    found = evaluate_network(str(path), "digits", "val", 100)["acc"]
    assert found == pytest.approx(right, abs=0.01 if int8 else 1e-6)


def test_what_is_exported_says_how_it_was_trained(tmp_path: Path) -> None:
    """As models of timm's and Hugging Face's are."""
    wanted = ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    with (
        patch("nas.launch.export.network_named", return_value=Named(ARCH, network(), wanted)),
        patch("nas.launch.export.time_networks", return_value=[SimpleNamespace(ms=1.0)]),
    ):
        found = export_network("timm:some", "onnx", None, None, tmp_path, 0)
    assert normalisation_of(Path(found["path"])) == wanted


def test_a_file_that_tells_nonsense_of_its_images_is_refused(
    exported: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    for text in ("[[0, 1], 2]", "[[0.5, 0.5], [1]]", "[]", "[[0.5], [1], [2]]", "{"):
        graph = with_notes(exported["onnx", False].read_bytes(), {NORMALISATION: text})
        (tmp_path / "odd.onnx").write_bytes(graph)
        with pytest.raises(InputError, match="which is no mean and deviation; export it again"):
            normalisation_of(tmp_path / "odd.onnx")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tmp_path / "net.safetensors", network().state_dict(), ARCH)
    return tmp_path / "net.safetensors"


def test_the_command_writes_checks_and_times(weights: Path, tmp_path: Path) -> None:
    words = ["export", str(weights), "--format", "openvino", "--int8", "--out", str(tmp_path / "out"), "--json"]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, InputError) and "name them with --data" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    found = json.loads(CliRunner().invoke(app, [*words, "--data", "digits"]).stdout)
    assert found["path"] == str(tmp_path / "out" / f"{ARCH.id}.int8.xml") and found["predicted_ms"] is None
    assert found["measured_ms"] > 0 and 0 < found["max_abs_diff"] < 1 and found["images"] > 200
    evaluated = [evaluate_network(name, "digits", "val", 50)["acc"] for name in (found["path"], str(weights))]
    assert abs(evaluated[0] - evaluated[1]) <= 0.1


def test_a_program_is_exported_and_evaluated(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nas.launch.export.time_networks", lambda files, target, **how: [SimpleNamespace(ms=1.0)]
    )  # as the command above does
    monkeypatch.setattr("nas.launch.export.peak_mb", lambda files, target: [1.0])
    found = export_network(str(weights), "pt2", None, None, tmp_path, 0)
    assert found["path"] == str(tmp_path / f"{ARCH.id}.pt2") and found["measured_ms"] == 1
    assert min(open_exported(Path(found["path"])).time(3)) > 0
    assert found["max_abs_diff"] < 1e-5 and found["top1_agreement"] == 1
    evaluated = [evaluate_network(name, "digits", "val", 50)["acc"] for name in (found["path"], str(weights))]
    assert evaluated[0] == evaluated[1]
    graph: Any = torch.export.load(found["path"]).module()  # by torch alone
    with torch.no_grad():
        torch.testing.assert_close(graph(IMAGES[:1]), network()(IMAGES[:1]))


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    reader = PT2ArchiveReader(str(path))
    records = {name: reader.read_bytes(name) for name in reader.get_file_names() if not name.startswith(".")}
    with PT2ArchiveWriter(str(path)) as writer:
        for name, content in records.items():
            if name not in ("version", "byteorder"):
                writer.write_bytes(name, change(name, content))


def saying(old: str, new: str) -> Callable[[str, bytes], bytes]:
    return lambda name, content: content.replace(old.encode(), new.encode()) if name.endswith(".json") else content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda name, content: b"pickle" if name.endswith("model.pt") else content,
            r"holds data/sample_inputs/model\.pt",
        ),
        (saying('"use_pickle": false', '"use_pickle": true'), "says use_pickle = True"),
        (saying("torch.ops.aten.add.Tensor", "torch.os.system"), "says target = 'torch.os.system'"),
        (saying("torch.ops.aten.add.Tensor", "torch.ops.aten.add.__class__"), "says target = "),
        (saying('"guards_code": []', '"guards_code": ["exit()"]'), "says guards_code = "),
        (saying('"metadata": {}', '"metadata": {"stack_trace": "x"}'), "says metadata = "),
        (saying('"name": "add"', '"name": "add; exit()"'), "says name = 'add; exit"),
    ],
    ids=["pickle", "pickled weights", "function", "attribute", "guard", "metadata", "source"],
)
def test_a_program_that_might_run_anything_is_refused(
    change: Callable[[str, bytes], bytes], said: str, exported: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(exported["pt2", False].read_bytes())
    rewritten(path, lambda name, content: content)
    read_program(path, target_of("pt2", False))
    rewritten(path, change)
    with pytest.raises(InputError, match=said) as caught:
        read_program(path, target_of("pt2", False))
    assert "might run any program" in str(caught.value) and "\n" not in str(caught.value)


def test_a_program_of_others_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), tmp_path / "a.pt2")
    with pytest.raises(InputError, match="might run any program when it is read; export the network again"):
        read_program(tmp_path / "a.pt2", target_of("pt2", False))


def test_a_program_takes_batches_of_one_size(exported: dict[tuple[str, bool], Path]) -> None:
    with pytest.raises(InputError, match="takes batches of 2, target cpu-eager-fp32-b1-t1 1"):
        read_program(exported["pt2", False], file_target("pt2", False, None))
