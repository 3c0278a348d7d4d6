"""Run folders: whole after a kill, refused when they are another run's."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.files import TEMPORARY, atomic_path, atomic_write, publish, read_json, write_json
from nas.networks import network_named
from nas.runs import Run, digest, load_weights, read_arch, save_weights
from search_spaces import InputError
from tests.search_spaces.test_arch import SMALL


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})

    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="No space left"), atomic_path(target) as temporary:
        fill(temporary)
    assert read_json(target) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    write_json(tmp_path / "ours.json", 1)
    (tmp_path / "plain.json").write_text("1")
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "plain.json").stat().st_mode


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"{", "not valid JSON"), (b"\xff\xfe{", "cannot be read")]
)
def test_unreadable_json_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_start_resume_and_refusals(tmp_path: Path) -> None:
    config: dict[str, Any] = {"seed": 1}
    run = Run.start(tmp_path / "r", "search", config, resume=False)
    run.append({"a": 1})
    with pytest.raises(InputError, match="--resume"):
        Run.start(tmp_path / "r", "search", config, resume=False)
    with pytest.raises(InputError, match="seed = 1, not 2"):
        Run.start(tmp_path / "r", "search", {"seed": 2}, resume=True)
    with pytest.raises(InputError, match="not a train run"):
        Run.open(tmp_path / "r", "train")
    again = Run.start(tmp_path / "r", "search", config, resume=True)
    assert again.records() == [{"a": 1}]
    assert again.summary is None
    again.finish({"done": True})
    assert Run.open(tmp_path / "r").summary == {"done": True}


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        Run.start(tmp_path, "search", {}, resume=True)
    with pytest.raises(InputError, match="holds no run"):
        Run.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_torn_last_record_is_dropped_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "r", "search", {}, resume=False)
    run.append({"a": 1})
    path = run.path / "records.jsonl"
    with path.open("a") as file:
        file.write('{"a": 2')
    assert run.records() == [{"a": 1}]
    run.append({"a": 3})
    assert run.records() == [{"a": 1}, {"a": 3}]
    path.write_text('{"a": \n' + json.dumps({"a": 1}) + "\n")
    with pytest.raises(InputError, match="damaged"):
        run.records()


def test_networks_round_trip_and_damage_is_named(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "r", "retrain", {}, resume=False)
    weights = SMALL.build().state_dict()
    run.save_network(SMALL, weights)
    assert run.arch() == SMALL
    for name, tensor in run.weights().items():
        assert torch.equal(tensor, weights[name])
    path = run.path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        run.weights()
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_weights(path)
    atomic_write(run.path / "arch.json", "{}")
    with pytest.raises(InputError, match=r"arch\.json: not an architecture"):
        read_arch(run.path / "arch.json")


def test_views_of_shared_weights_can_be_saved(tmp_path: Path) -> None:
    bank = torch.arange(12.0).reshape(3, 4)
    save_weights(tmp_path / "w.safetensors", {"a": bank[:2, :2], "b": bank[:1]})
    found = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], bank[:2, :2])


def test_what_a_kill_left_half_written_is_no_run_and_goes_away(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}config-x.json").write_text("{")
    run = Run.start(tmp_path, "search", {}, resume=True)
    with run.locked():
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_two_processes_do_not_work_in_one_run(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "r", "search", {}, resume=False)
    script = f"""
from pathlib import Path
from nas.runs import Run
with Run.open(Path({str(tmp_path / "r")!r})).locked():
    print("in")
"""
    with run.locked():
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "another process is at work" in other.stderr and other.stdout == ""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "in\n"


@pytest.mark.parametrize("content", ['["retrain"]', '{"model_type": "vit"}', '{"kind": 3}'])
def test_a_config_of_another_program_is_no_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    for use in (
        lambda: Run.open(tmp_path),
        lambda: Run.start(tmp_path, "train", {}, resume=True),
        lambda: network_named(str(tmp_path)),
    ):
        with pytest.raises(InputError, match=r"config.json is of no run; .* as hf:FOLDER"):
            use()


def test_files_that_belong_together_are_never_mixed(tmp_path: Path) -> None:
    """Where copying fails after the first of them, the last, which says what the others are, is not there."""
    out, files = tmp_path / "out", [tmp_path / "a.bin", tmp_path / "a.xml"]
    for content in ("1", "2"):
        for file in files:
            file.write_text(content)
        assert publish(files, out) == [out / "a.bin", out / "a.xml"]
        assert {path.name: path.read_text() for path in out.iterdir()} == {"a.bin": content, "a.xml": content}
    files[0].write_text("3")
    files[1].unlink()
    with pytest.raises(InputError, match=r"cannot write .*a\.xml"):
        publish(files, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a.bin": "3"}


def test_a_digest_tells_weights_apart() -> None:
    one = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert digest(one) == digest(dict(reversed(one.items())))
    assert digest(one) != digest({**one, "a": torch.tensor([0.0, 1e-7])})
