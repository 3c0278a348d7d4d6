"""The commands on MobileViTs and Mobile-Formers: spaces of them, trained and searched, and a released checkpoint."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from nas.data import DATASETS
from nas.runs import read_arch
from nas.table_file import Calibration, RowTime, write
from search_spaces import SPACES, Space
from tests.cli.running import printed as nas
from tests.nas.test_latency import content
from tests.nas.toy import toy, toy_mobile_former, toy_mobilevit
from tests.parity.oracle import filled, reference

TOYS = (toy_mobilevit, toy_mobile_former)


@pytest.fixture(autouse=True)
def toys_are_known() -> object:
    with (
        patch.dict(SPACES, {make().name: make for make in TOYS}),
        patch.dict(DATASETS, {"toy": lambda path, image_size, seed: toy()}),
    ):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("make", TOYS)
def test_a_supernet_is_trained_and_searched_in_milliseconds(make: Callable[[], Space], tmp_path: Path) -> None:
    """On times that we made up, but for those of the winner."""
    space = make()
    rows = {row.key: RowTime(0.05, 0.05, 0.05, 0.05, 0, 20) for row in space.rows}
    write(tmp_path / "table", content(space=space.name, rows=rows, calibration=Calibration(offset=0.1, scale=1.0)))
    trained = nas("train", "--space", space.name, "--data", "toy", "--epochs", 1, "--out", tmp_path / "s")
    assert 0 <= trained["smallest_acc"] <= 1
    search = ("--table", tmp_path / "table.csv", "--trials", 3, "--budget-ms", 50, "--foreign-table")
    (result,) = nas("search", "--supernet", tmp_path / "s", *search, "--out", tmp_path / "found")["results"]
    winner = read_arch(tmp_path / "found" / result["arch"])
    assert space.contains(winner) and 0 < result["measured_ms"] <= 50
    assert result["predicted_ms"] == pytest.approx(0.1 + 0.05 * len(winner.rows))
    assert nas("describe", tmp_path / "found" / result["arch"], "--table", tmp_path / "table.csv")["predicted_ms"] == (
        pytest.approx(result["predicted_ms"])
    )


def test_a_released_checkpoint_is_described(tmp_path: Path) -> None:
    parity = reference("mobilevit_xxs")
    torch.save(filled(parity), tmp_path / "xxs.pth")
    found = nas("describe", tmp_path / "xxs.pth")
    assert found["id"] == nas("describe", "mobilevit_xxs")["id"]
    assert (found["params"], found["macs"]) == (parity["params"], parity["macs"])
    assert found["macs_fvcore"] == found["macs_thop"] == parity["macs"], "fused attention is counted"
    assert [block["label"] for block in found["blocks"]][5:7] == ["IR×2→48", "ViT 2×64"]
