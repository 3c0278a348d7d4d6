"""What pruning is compared with: each rival within the budget by the table or the clock, or a line that says why there is none."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.dense import network_of
from compress.prune import Pruned
from compress.uniform import resized, uniform_sizes
from nas.cost import macs, params
from nas.data import load
from nas.evaluate import accuracy, best_classes
from nas.networks import Named
from nas.pruning import rivals as module
from nas.pruning import siblings
from nas.pruning.files import Files
from nas.pruning.job import Job
from nas.pruning.rivals import rival_rows
from nas.pruning.siblings import smaller_sibling, smaller_sibling_name
from nas.target import Target
from nas.timing import Timing
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from search_spaces.spaces.frames import PARTS, whole_frame
from tests.nas.test_measure import TARGET

BLOCK = MB3D(2, 8, 8, 64 / 32, residual="plain", bias=False)
ARCH = Arch(32, 3, (Patch(32, 8), ClassToken(), Position(), BLOCK, BLOCK, Head(10, pool="token")))
NAMES = ["dense", "pruned", "sibling", "uniform", "magnitude", "resolution", "int8"]


def ms_of(arch: Arch) -> float:
    return macs(arch) / 1e5


def job_on(target: Target, lacks: Sequence[str] = ()) -> Job:
    """Times are MACs; rows of the kinds in `lacks` have no price where they are not the dense network's."""
    torch.manual_seed(0)
    network = ARCH.build().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    known = set(ARCH.rows)
    table: Any = SimpleNamespace(
        target=target,
        predict=lambda arch: SimpleNamespace(ms=ms_of(arch)),
        unpriced=lambda rows: [row for row in rows if row.op in lacks and row not in known],
    )
    return Job(Named(ARCH, network), network, load("digits", image_size=32), table, 32, PARTS, 0)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Arch | Path]]]:
    """What was timed, run by run; a file takes 7 ms."""
    runs: list[list[Arch | Path]] = []

    def timed(networks: Sequence[Arch | Path], *how: Any) -> list[Timing]:
        runs.append(list(networks))
        times = [7.0 if isinstance(one, Path) else ms_of(one) for one in networks]
        return [Timing(ms, ms, ms, ms, ms, 1, 1.0, 0.0, ms, ms) for ms in times]

    monkeypatch.setattr(module, "timed", timed)
    yield runs


def by_name(job: Job, budget: float, scratch: Path, model: str = "network", **how: Any) -> dict[str, dict[str, Any]]:
    arch = resized(ARCH, list(uniform_sizes(ARCH))[-1][1])
    found = Pruned(arch, dict(arch.build().state_dict()), 0.0, 0.0, 0.0, {}, whole_frame(ARCH))
    rows = rival_rows(job, model, found, budget, Files(job, scratch, scratch), **how)
    assert [row["name"] for row in rows] == NAMES
    assert all(row.keys() == rows[0].keys() for row in rows)
    return {row["name"]: row for row in rows}


def test_rivals_are_the_largest_within_the_budget_and_timed_in_one_run(
    clock: list[list[Arch | Path]], tmp_path: Path
) -> None:
    job, budget = job_on(TARGET), 0.6 * ms_of(ARCH)
    rows = by_name(job, budget, tmp_path)
    within = [arch for arch in (resized(ARCH, sizes) for _, sizes in uniform_sizes(ARCH)) if ms_of(arch) <= budget]
    uniform, magnitude, small = (rows[name] for name in ("uniform", "magnitude", "resolution"))
    assert uniform["macs"] == magnitude["macs"] == macs(within[0]) and uniform["params"] == params(within[0])
    assert uniform["measured_ms"] == ms_of(within[0]) and "heads and neurons in every block" in uniform["note"]
    assert small["note"] == "images of 24 pixels" and small["measured_ms"] == ms_of(ARCH.at(24)) <= budget
    assert rows["dense"]["acc"] == accuracy(job.network, job.data, "test")
    assert small["acc"] == accuracy(job.named.at(24).network, job.data.at(24), "test")
    sizes, together = clock
    assert sizes == [ARCH.at(24), ARCH.at(16), ARCH.at(8)]
    assert together[0] == ARCH and len(together) == 6 and isinstance(together[-1], Path)


def test_int8_is_the_dense_file_quantised(tmp_path: Path) -> None:
    job = job_on(TARGET)
    row = by_name(job, ms_of(ARCH) / 2, tmp_path)["int8"]
    assert row["measured_ms"] == 7.0 and row["macs"] == macs(ARCH)
    assert row["acc"] == pytest.approx(accuracy(job.network, job.data, "test"), abs=0.1)
    assert b"QuantizeLinear" in (tmp_path / "dense.int8.onnx").read_bytes()


def test_without_labels_rivals_are_told_by_how_often_they_agree_with_the_dense_network(tmp_path: Path) -> None:
    job = job_on(TARGET)
    job = replace(job, data=replace(job.data, class_names=()))
    rows = by_name(job, 0.6 * ms_of(ARCH), tmp_path)
    assert all(row["acc"] is None for row in rows.values()) and rows["dense"]["agreement"] == 1.0
    small, images = job.named.at(24).network, job.data.at(24)
    agreed = (best_classes(small, images, "test") == best_classes(job.network, job.data, "test")).mean()
    assert rows["resolution"]["agreement"] == agreed and 0.5 < rows["int8"]["agreement"] <= 1
    assert rows["sibling"]["agreement"] is None


def test_what_cannot_be_had_says_why_in_a_line(tmp_path: Path) -> None:
    rows = by_name(job_on(Target.parse("cpu-eager-fp32-b1-t1")), 1e-3, tmp_path)
    for name in NAMES[2:]:
        assert rows[name]["note"].startswith("not available: ") and "\n" not in rows[name]["note"]
        assert rows[name]["measured_ms"] is None and rows[name]["acc"] is None
    assert "is no model of timm's" in rows["sibling"]["note"] and "eager runs no ONNX files" in rows["int8"]["note"]
    assert "the fewest heads and neurons" in rows["uniform"]["note"] and "smaller images" in rows["resolution"]["note"]
    int8 = by_name(job_on(Target.parse("cpu-ort-int8-b1-t1")), 1e-3, tmp_path)["int8"]
    assert "computes in int8 as it is" in int8["note"]


@pytest.mark.parametrize("classes", [10, 7])
def test_the_smaller_sibling_stands_beside_it(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is published, or, of other classes, with a classifier fitted to the data's."""
    smaller = replace(ARCH, blocks=(*ARCH.blocks[:4], Head(classes, pool="token")))
    torch.manual_seed(1)
    named = Named(smaller, smaller.build().eval())
    monkeypatch.setattr(siblings, "network_named", lambda name: named)
    job = job_on(TARGET)
    sibling = by_name(job, 0.6 * ms_of(ARCH), tmp_path, model="timm:deit_small_patch16_224")["sibling"]
    own = smaller.with_classes(10)
    assert sibling["params"] == params(own) and sibling["macs"] == macs(own) and sibling["measured_ms"] == ms_of(own)
    if classes == 10:
        assert sibling["note"] == "timm:deit_tiny_patch16_224"
        assert sibling["acc"] == accuracy(named.network, job.data, "test")
    else:
        assert sibling["note"] == "timm:deit_tiny_patch16_224, classifier fitted" and sibling["acc"] > 0.5
        bare = replace(job, data=replace(job.data, class_names=()))
        missing = by_name(bare, 0.6 * ms_of(ARCH), tmp_path / "bare", model="timm:deit_small_patch16_224")["sibling"]
        assert missing["note"] == "not available: timm:deit_tiny_patch16_224 tells 7 classes apart, not 10"


def test_an_encoders_sibling_has_features_of_its_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another width they could not follow the dense one's."""
    encoder, narrow = (
        replace(ARCH, blocks=(Patch(width, 8), *ARCH.blocks[1:-1], Head(0, pool="token"))) for width in (32, 24)
    )
    named = Named(narrow, narrow.build().eval())
    monkeypatch.setattr(siblings, "network_named", lambda name: named)
    job = replace(job_on(TARGET), named=Named(encoder, encoder.build().eval()))
    found = module._sibling(job, "timm:deit_small_patch16_224", tmp_path)
    assert found == module.Missing("sibling", "timm:deit_tiny_patch16_224 gives 24 features, not 32")


def test_uniform_cuts_are_those_that_the_table_prices(tmp_path: Path) -> None:
    """A table of some parts alone has no rows of the others."""
    rows = by_name(job_on(TARGET, lacks=("mb3d.attention",)), 0.9 * ms_of(ARCH), tmp_path)
    assert f"that the table prices it is predicted to take {ms_of(ARCH):.4g} ms" in rows["uniform"]["note"]
    assert rows["magnitude"]["note"] == rows["uniform"]["note"] and rows["magnitude"]["measured_ms"] is None


def test_rivals_are_trained_as_the_result_was(tmp_path: Path) -> None:
    asked = []

    def heal(name: str, arch: Arch, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        asked.append(name)
        return {key: torch.zeros_like(tensor) for key, tensor in weights.items()}

    job = job_on(TARGET)
    rows = by_name(job, 0.6 * ms_of(ARCH), tmp_path, heal=heal)
    assert asked == ["uniform", "magnitude", "resolution"]
    nothing = {name: torch.zeros_like(tensor) for name, tensor in job.network.state_dict().items()}
    assert rows["uniform"]["acc"] == accuracy(network_of(ARCH, nothing), job.data, "test")


@pytest.mark.parametrize(
    ("name", "sibling"),
    [
        ("deit_base_patch16_224", "deit_small_patch16_224"),
        ("deit_small_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
        ("vit_base_patch16_224.mae", "vit_medium_patch16_224"),
        ("deit_tiny_patch16_224", None),
        ("resnet18", None),
    ],
)
def test_siblings_are_named_for_the_next_smaller_size(
    name: str, sibling: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sibling == "vit_medium_patch16_224":
        import timm

        known = ["vit_medium_patch16_224", "vit_tiny_patch16_224"]
        monkeypatch.setattr(timm, "list_models", lambda include_tags=False: known)
    assert smaller_sibling_name(name) == sibling


def test_a_sibling_comes_with_its_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    named = Named(ARCH, ARCH.build())
    monkeypatch.setattr(siblings, "network_named", lambda name: named)
    assert smaller_sibling("timm:deit_small_patch16_224") == ("timm:deit_tiny_patch16_224", named)
    for name, line in [
        ("timm:deit_small_patch16_224@file.safetensors", "are a file"),
        ("timm:deit_tiny_patch16_224", "knows no smaller sibling"),
    ]:
        with pytest.raises(InputError, match=line):
            smaller_sibling(name)
