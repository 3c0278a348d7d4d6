"""Files of networks that fuse or merge patches, and the commands on them."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nas.cli.main import app
from nas.cost import macs, params
from nas.export import ALIKE, _merge_margin, check_file, export_onnx
from nas.runtimes.onnxruntime import batch_of
from nas.runtimes.onnxruntime import export_onnx as export_fast
from nas.target import Target
from search_spaces import InputError
from tests.search_spaces.test_merging import KINDS, fours, reduced
from tests.search_spaces.test_token_prune import network


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("rest", "end"), [(rest, end) for rest in KINDS for end in ("class token", "mean")])
def test_both_exporters_give_the_networks_logits(rest: str, end: str, batch: int, tmp_path: Path) -> None:
    """Dynamo's for users, and the fast one for timing."""
    arch = reduced(rest, end=end)
    built, images = network(arch), arch.example(7)
    target = Target.parse(f"cpu-ort-fp32-b{batch}-t1")
    path = export_onnx(built, arch.example(batch), tmp_path / "a.onnx")
    (tmp_path / "fast.onnx").write_bytes(export_fast(built, arch.example(batch)))
    for file in (path, tmp_path / "fast.onnx"):
        assert batch_of(file) == batch
        checked = check_file(file, built, images, target)
        assert checked.max_abs_diff <= 1e-5 and checked.top1_agreement == 1


def test_files_merge_equal_patches_as_the_network_does(tmp_path: Path) -> None:
    """Of equal ones it is rounding that decides, and in this network it makes no difference."""
    arch = reduced("merged", (48, 40), place=False)
    built = network(arch)
    path = export_onnx(built, arch.example(2), tmp_path / "a.onnx")
    assert check_file(path, built, fours(0), Target.parse("cpu-ort-fp32-b2-t1")).max_abs_diff <= 2e-5


def test_rounding_decides_between_patches_that_are_as_much_alike() -> None:
    similarity = torch.tensor([[0.9, 0.8], [0.7, 0.4], [0.1, 0.65]])
    stays = torch.tensor([False, False, True])
    assert _merge_margin(similarity, stays) == pytest.approx(0.05)  # the second might stay, and the third go
    assert _merge_margin(similarity, torch.tensor([False, True, True])) == pytest.approx(
        0.1
    )  # the first, into the other
    assert _merge_margin(similarity, torch.zeros(3, dtype=torch.bool)) == pytest.approx(0.1)
    assert _merge_margin(similarity[:, :1], torch.tensor([False, True, True])) == pytest.approx(0.2)
    assert _merge_margin(similarity.roll(1, 1).index_fill(1, torch.tensor(1), 0.8), stays) < ALIKE


@pytest.mark.parametrize("rest", KINDS)
def test_the_commands_take_such_networks(rest: str, tmp_path: Path) -> None:
    arch = reduced(rest)
    path = tmp_path / "arch.json"
    path.write_text(arch.to_json())
    found = CliRunner().invoke(app, ["describe", str(path), "--json"])
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert (told["id"], told["macs"], told["params"]) == (arch.id, macs(arch), params(arch))
    assert [block["label"] for block in told["blocks"] if block["kind"] == "token_prune"] == [
        f"keep {k} {rest}" for k in (40, 25)
    ]
    shapes = [block["output"] for block in told["blocks"] if block["kind"] == "token_prune"]
    assert shapes == [[1 + keep + (rest == "fused"), 16] for keep in (40, 25)]
    words = ["export", str(path), "--target", "cpu-ort-fp32-b2-t1", "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["max_abs_diff"] <= 1e-5 and result["measured_ms"] > 0 and Path(result["path"]).is_file()
    words = ["retrain", str(path), "--data", "contours", "--thresholds", "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, InputError) and f"are {rest}, in fixed numbers" in str(refused.exception)
