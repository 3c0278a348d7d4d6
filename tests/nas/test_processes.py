"""`nas retrain` by two processes that torchrun starts: one training, written once, of the weights that one process gets."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from nas.runs import Run, load_weights
from nas.train.loop import Recipe, check_shared
from nas.train.retrain import fresh_network
from search_spaces import InputError
from tests.nas.pruning_toy import ARCH
from tests.nas.toy import toy_space

SCRIPT = """
    import sys
    import torch
    from nas.data import DATASETS
    from tests.nas.toy import toy
    torch.set_num_threads(1)
    DATASETS["toy"] = lambda path, image_size, seed: toy(128)
    from nas.cli import main
    sys.argv[0] = "nas"
    main()
"""
ROOT = Path(__file__).parents[2]
FLAGS = ("--data", "toy", "--epochs", "2", "--batch-size", "32", "--lr", "1e-3", "--ema", "0.8", "--json")


def run(folder: Path, count: int, *words: str, code: int = 0) -> tuple[str, str]:
    """What `nas` printed on stdout and stderr, by so many processes."""
    script = folder / "started.py"
    script.write_text(textwrap.dedent(SCRIPT))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # the script lies elsewhere
    command = [sys.executable, *launch, str(script), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            told = process.communicate(timeout=200)
        finally:
            process.terminate()  # and torchrun ends its processes, which a kill would leave
    assert (process.returncode != 0) == bool(code), told[1]
    return told


def teacher(folder: Path) -> Path:
    """A retrain run to learn from, whose network need not be good for that."""
    made = Run.start(folder, "retrain", {}, resume=False)
    made.save_network(ARCH, dict(fresh_network(ARCH, 1).state_dict()))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("kind", ["tokens", "batch norm"])
def test_two_processes_train_one_network(kind: str, tmp_path: Path) -> None:
    arch = ARCH if kind == "tokens" else toy_space().smallest
    (tmp_path / "a.json").write_text(arch.to_json())
    guided = ("--teacher", str(teacher(tmp_path / "teacher"))) if kind == "tokens" else ()
    words = ("retrain", str(tmp_path / "a.json"), *FLAGS, *guided, "--out")
    one, two = (run(tmp_path, count, *words, str(tmp_path / str(count))) for count in (1, 2))
    told = json.loads(two[0])  # one object: the second process is silent
    assert told["test_acc"] > 0.2 and Run.open(tmp_path / "2").summary is not None
    assert Run.open(tmp_path / "1").config == Run.open(tmp_path / "2").config
    assert {path.name for path in (tmp_path / "2").iterdir()} == {path.name for path in (tmp_path / "1").iterdir()}
    alone, together = (load_weights(tmp_path / name / "weights.safetensors") for name in ("1", "2"))
    if kind == "tokens":  # its gradients are means over images, whoever has them; batch norm is of a process's own
        for name, weight in alone.items():
            torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4)
    assert json.loads(one[0]).keys() == told.keys()
    assert (told["teacher_acc"] is not None) == (kind == "tokens") and told["teacher_acc"] == json.loads(one[0])[
        "teacher_acc"
    ]
    if kind == "tokens":
        again = run(tmp_path, 2, *words, str(tmp_path / "2"), "--resume")
        assert json.loads(again[0]) == told, "a run that is done is not trained again"
        assert "already holds a run" in run(tmp_path, 2, *words, str(tmp_path / "2"), code=2)[1]


def test_what_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared(Recipe(1, 33, sides=(32, 64)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_shared(Recipe(1, 32))
    with pytest.raises(InputError, match="2 processes cannot share a batch of 33 images"):
        check_shared(Recipe(1, 33))
    with pytest.raises(InputError, match="--sides and --mixed-depth are of one process"):
        check_shared(Recipe(1, 32, sides=(32, 64)))
