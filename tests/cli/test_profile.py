"""`nas profile` and `nas describe` from the command line."""

import json
import re
from pathlib import Path

import pytest

from search_spaces import Arch
from search_spaces.blocks import MB3D, MB4D, Embed, Head, Stem
from search_spaces.cascade import linked
from tests.cli.test_bad_input import nas, refused
from tests.nas.test_cascade import vit

TARGET = "cpu-ort-fp32-b1-t1"
ARCH = Arch(32, 3, (Stem(8), MB4D(2), Embed(16), MB4D(1), MB3D(2, 8, 8, 4), Head(5)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arch") / "small.json"
    path.write_text(ARCH.to_json())
    return path


def test_a_profile_has_the_fields_of_the_contract(path: Path) -> None:
    found = nas("profile", path, "--target", TARGET, "--rounds", 4, "--seed", 1, "--json")
    assert found.returncode == 0, found.stderr
    value = json.loads(found.stdout)
    assert value["network"] == ARCH.id and value["target"] == TARGET and value["rounds"] == 4 and value["networks"] > 15
    assert value["peak_mb"] >= value["weights_mb"] > 0
    assert value["measured_ms"] > 0 and value["total_ms"] > 0 and value["noise_floor"] >= 0
    assert [block["name"] for block in value["blocks"]] == [f"{i} {spec.label}" for i, spec in enumerate(ARCH.blocks)]
    assert [block["macs"] for block in value["blocks"]] == [spec.macs(state) for spec, state in ARCH.steps()]
    assert sum(block["ms"] for block in value["blocks"]) == pytest.approx(value["total_ms"])
    assert sum(block["share"] for block in value["blocks"]) == pytest.approx(1)
    assert sum(operator["ms"] for operator in value["operators"]) == pytest.approx(value["total_ms"])
    for block in value["blocks"]:
        assert 0 <= block["low"] <= block["ms"] <= block["high"]
        assert sum(part["ms"] for part in block["operators"]) == pytest.approx(block["ms"])
        assert (block["plateau"] is None) == (not block["smaller"])
    assert {block["name"] for block in value["blocks"] if block["smaller"]} == {"1 4D×2", "3 4D×1", "4 3D×4"}


def test_the_printed_form_has_a_line_for_every_block_and_nothing_narrower_where_it_is_not_wanted(path: Path) -> None:
    found = nas("profile", path, "--rounds", 4, "--no-plateau")
    assert found.returncode == 0, found.stderr
    for spec in ARCH.blocks:
        assert spec.label in found.stdout
    for word in ("measured_ms", "total_ms", "blocks", "operators", "mb3d.attention", "gmacs_per_s"):
        assert word in found.stdout
    assert "smaller: []" in found.stdout and "FFN width" not in found.stdout
    assert re.search(r"plateau", found.stdout) and "True" not in found.stdout


def test_a_cascade_is_profiled_as_far_as_each_exit_and_no_plateau_is_told(tmp_path: Path) -> None:
    arch = linked([vit(16), vit(8)])
    (tmp_path / "cascade.json").write_text(arch.to_json())
    found = nas("profile", tmp_path / "cascade.json", "--rounds", 4, "--json")
    assert found.returncode == 0, found.stderr
    assert "no plateau is told" in found.stderr
    value = json.loads(found.stdout)
    assert value["network"] == arch.id and value["networks"] == 4, "each exit, behind one block and all"
    assert [block["name"] for block in value["blocks"]] == [f"{i} {spec.label}" for i, spec in enumerate(arch.blocks)]
    assert sum(block["share"] for block in value["blocks"]) == pytest.approx(1)
    assert all(block["plateau"] is None for block in value["blocks"]) and value["smaller"] == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("efficientformer_l1", "--target", "toaster-ort-fp32-b1-t1"), ("toaster", "cpu-ort-fp32")),
        (("efficientformer_l1", "--target", "cpu-ort-fp32-b1-t999"), ("999 threads", "lower -t")),
        (("efficientformer_l9", "--target", TARGET), ("efficientformer_l9", "efficientformer_l1")),
        (("asvit_deit_tiny", "--target", "cpu-ort-fp32-b2-t1"), ("takes images one by one",)),
    ],
)
def test_what_cannot_be_profiled_is_one_line(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    refused(nas("profile", *words), 2, *parts)


@pytest.mark.parametrize("name", ["asvit_deit_tiny", "sret_t"])
def test_a_description_of_a_published_network_has_its_counts_and_a_table(name: str) -> None:
    found = nas("describe", name, "--json")
    assert found.returncode == 0, found.stderr
    value = json.loads(found.stdout)
    for count in ("macs_fvcore", "macs_thop"):
        assert value[count] == pytest.approx(value["macs"], rel=0.01)
    for count in ("params", "macs"):
        assert value[count] == sum(block[count] for block in value["blocks"]) > 1e6
    assert value["predicted_ms"] is None and all(block["ms"] is None for block in value["blocks"])


def test_a_description_is_printed_as_a_table(path: Path) -> None:
    found = nas("describe", path)
    assert found.returncode == 0, found.stderr
    for word in ("params", "macs_fvcore", "macs_thop", "predicted_ms", "kind", *(spec.kind for spec in ARCH.blocks)):
        assert word in found.stdout
