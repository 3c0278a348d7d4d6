"""`nas prune`, killed by SIGKILL in each of its stages: with --resume it comes to what an uninterrupted run does, and leaves no files."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.cli import main
from nas.files import TEMPORARY
from nas.runs import Run, digest, save_weights
from nas.train.retrain import fresh_network
from tests.nas.pruning_toy import ARCH, PARTS, TARGET, priced
from tests.nas.toy import toy

STAGES = {  # what there is of a run once a stage has begun
    "calibration": "dense-times.json",
    "training": "calibrated/summary.json",
    "a training of which an epoch is kept": "trained/checkpoint.pt",
}
PATIENCE = 60  # seconds that a stage may take to begin

# Each process is forked from one that has imported torch, not from this one, and not anew: it starts in milliseconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def prune(vit: Path, out: Path) -> None:
    """The command, in a process of its own whose temporary files lie beside `out`."""
    torch.set_num_threads(1)
    tempfile.tempdir = str(out.parent)
    words = ("--data", "toy", "--target", TARGET.name, "--speedup", "2.5", "--images", "64", "--parts", ",".join(PARTS))
    training = ("--train-epochs", "3", "--batch-size", "32")
    sys.argv = ["nas", "prune", str(vit), *words, *training, "--out", str(out), "--resume"]
    with priced(data=toy(256)):
        main()


def started(vit: Path, out: Path) -> BaseProcess:
    process = SERVER.Process(target=prune, args=(vit, out))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(PATIENCE)
    return process.exitcode


def outcome(out: Path) -> Any:
    """What a run came to, but for where it lies."""
    return json.loads((out / "summary.json").read_text().replace(str(out), "OUT"))


@pytest.mark.timeout(200)
def test_a_pruning_that_was_killed_in_each_stage_comes_to_the_same(tmp_path: Path) -> None:
    vit, whole, out = tmp_path / "vit.safetensors", tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    save_weights(vit, fresh_network(ARCH, 0).state_dict(), ARCH)
    whole.parent.mkdir()
    out.parent.mkdir()
    assert ended(started(vit, whole)) == 0
    for stage, name in STAGES.items():
        process, until = started(vit, out), time.monotonic() + PATIENCE
        while not (out / name).exists():
            assert process.is_alive() and time.monotonic() < until, f"no {stage}"
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL, f"{stage} was over before the kill"
        assert not (out / "summary.json").exists()
    last = started(vit, out)
    assert ended(last) == 0
    assert outcome(out) == outcome(whole) and outcome(out)["training"]["epochs"] == 3
    assert Run.open(out).arch() == Run.open(whole).arch()
    assert digest(Run.open(out).weights()) == digest(Run.open(whole).weights())
    assert {path.relative_to(out) for path in out.rglob("*")} == {path.relative_to(whole) for path in whole.rglob("*")}
    assert not [path for path in out.rglob("*") if path.name.startswith(TEMPORARY) or path.name == "checkpoint.pt"]
    scratch = [path.name for path in out.parent.glob("nas-*/*-*")]
    assert all(name.startswith(f"{last.pid}-") for name in scratch), "the next process removes what a killed one left"
