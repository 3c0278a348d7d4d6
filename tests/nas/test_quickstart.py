"""The whole path, small: every file of the run is there, agrees with the others, and a resumed run adds nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from typer.testing import CliRunner

from nas.cli.main import app
from nas.latency import LatencyTable
from nas.quickstart import Settings
from nas.report import sketch
from nas.runs import Run, read_arch
from nas.runtimes import RUNTIMES
from nas.target import Target
from nas.timing import ROUNDS
from search_spaces import SPACES, zoo
from tests.search_spaces.test_arch import SMALL

SCRIPT = """
    import json, sys
    from pathlib import Path
    import torch
    import nas.quickstart
    from nas.cost import macs
    from nas.data import DATASETS
    from nas.quickstart import Quickstart, Settings
    from nas.runs import read_arch
    from nas.search.score import Scorer
    from nas.timing import ROUNDS, Timing
    from search_spaces import SPACES
    from tests.nas.toy import toy, toy_space
    torch.set_num_threads(1)
    SPACES["hybrid_toy"] = toy_space
    DATASETS["toy"] = lambda path, image_size, seed: toy(512)
    largest = macs(toy_space().largest)  # one of two epochs tells little: its best would be any network, also the fastest
    Scorer.__call__ = lambda self, arch, images=None: macs(arch) / largest
    def steady(networks, table, seed):  # what a quiet machine would measure: tests run beside each other
        archs = [read_arch(each.parent / "arch.json") if isinstance(each, Path) else each for each in networks]
        return [table.predict(arch).ms for arch in archs]
    slow = []  # the files of the first verification take half as long again as the table says: they are replaced
    def timed(files, table, seed, rounds=ROUNDS):
        slow[:] = slow or [set(files)]
        replaced = set(files) & slow[0]  # those in their place seem slow at first, and are not when timed for longer
        at_first = 1 if replaced or rounds > ROUNDS else 10
        slower = [1.5 if file in slow[0] else at_first for file in files]
        found = [by * ms for by, ms in zip(slower, steady(files, table, seed), strict=True)]
        return [Timing(ms, ms, ms, ms, ms, rounds, 1.0, 0.0, ms, ms) for ms in found]
    nas.quickstart.measured_ms, nas.quickstart.timed = steady, timed
    small = Settings(space="hybrid_toy", data="toy", shares=(0.7, 0.8, 0.9), trials=16, supernet_epochs=2, epochs=1, rounds=4)
    print(json.dumps(Quickstart(small, Path(sys.argv[1]), resume=True)()))
"""
COMMAND = [sys.executable, "-c", textwrap.dedent(SCRIPT)]


def quickstart(out: Path) -> dict[str, Any]:
    found = subprocess.run([*COMMAND, str(out)], capture_output=True, text=True, check=False, timeout=200)
    assert found.returncode == 0, found.stderr
    value: dict[str, Any] = json.loads(found.stdout)
    return value


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quickstart_killed_resumed_and_read_back(tmp_path: Path) -> None:
    out = tmp_path / "q"
    process = subprocess.Popen([*COMMAND, str(out)], stdout=subprocess.DEVNULL)
    while not (out / "search" / "records.jsonl").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    summary = quickstart(out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert quickstart(out) == summary
    table = LatencyTable.load(next((out / "table").glob("*.json")))
    budgets = [result["budget_ms"] / summary["largest"]["measured_ms"] for result in summary["results"]]
    np.testing.assert_allclose(budgets, (0.7, 0.8, 0.9))
    for result in summary["results"]:
        check_result(out, result, table)
    verified = [record["timings"] for record in Run.open(out).records() if record["event"] == "verified"]
    assert len(verified) >= 2, "the slow files were taken"
    assert all(timing["n"] == 3 * ROUNDS for timing in verified[-1].values()), "what seemed slow was replaced at once"
    assert all(verified[-1][read_arch(out / result["arch"]).id] == result["timing"] for result in summary["results"])
    page = (out / summary["report"]).read_text()
    assert "<script src=" not in page
    assert "<link" not in page
    for result in [*summary["results"], summary["largest"]]:
        assert result["peak_mb"] > result["weights_mb"] > 0 and f"<td>{result['peak_mb']:.1f}</td>" in page
    for result in summary["results"]:
        assert sketch(read_arch(out / result["arch"])) in page
        assert f"{result['measured_ms']:.3f}" in page


def check_result(out: Path, result: dict[str, Any], table: LatencyTable) -> None:
    assert result["measured_ms"] <= result["budget_ms"]
    assert result["onnx_max_abs_diff"] <= 1e-4
    assert result["onnx_top1_agreement"] >= 0.999
    assert 0 <= result["search_acc"] <= 1
    assert 0.1 < result["test_acc"] <= 1
    arch = read_arch(out / result["arch"])
    assert table.predict(arch).ms == pytest.approx(result["predicted_ms"])
    assert (out / result["weights"]).is_file()
    session = RUNTIMES["ort"].from_file(out / result["onnx"], Target.parse("cpu-ort-fp32-b1-t1"))
    assert session.run(arch.example().numpy()).shape == (1, arch.classes)


def test_flags_of_the_command_reach_the_settings(tmp_path: Path) -> None:
    asked: list[Settings] = []

    def noted(settings: Settings, out: Path, *, resume: bool) -> Callable[[], dict[str, Any]]:
        asked.append(settings)
        return dict

    words = "--seed 3 --trials 5 --largest-epochs 0 --supernet-epochs 4 --epochs 6 --rounds 7"
    with patch("nas.quickstart.Quickstart", noted):
        for flags in ((), words.split()):
            assert CliRunner().invoke(app, ["quickstart", "--out", str(tmp_path), *flags, "--json"]).exit_code == 0
    assert asked[0] == Settings()
    assert asked[1] == Settings(seed=3, trials=5, largest_epochs=0, supernet_epochs=4, epochs=6, rounds=7)


def test_sketch_tells_widths_kinds_and_ratios() -> None:
    assert sketch(SMALL) == f"{SMALL.image_size} px | 8: 4D×2 | 16: 4D×1 3D×2"
    assert sketch(zoo.arch("efficientformer_l1")).endswith("448: 4D×4 4D×4 4D×4 3D×4")
    assert sketch(zoo.arch("efficientformerv2_s0")).endswith(
        "attn×4 /2 attn×4 /2 | 176 attn: 4D×4 dw 4D×3 dw attn×3 attn×4"
    )
    stages = "IR×2→48 ViT 2×64 | IR×2→64 ViT 4×80 | IR×2→80 ViT 3×96 conv 320"
    assert sketch(zoo.arch("mobilevit_xxs")) == f"256 px | 16: IR×2→16 | IR×2→24 IR×2→24 IR×2→24 | {stages}"
    assert sketch(SPACES["vit_digits"]().smallest) == "48 px | 32/8: class_token position 3D×1 1h8 keep 16 3D×1 1h8"
