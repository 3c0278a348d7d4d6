"""Temporary files of killed processes are removed by the next one, those of living ones are not."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.scratch import _own, scratch_dir
from search_spaces.errors import InputError

HOLD = """
import sys, tempfile
from nas.scratch import scratch_dir
folder = tempfile.TemporaryDirectory(prefix="ort-", dir=scratch_dir())
print(folder.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where scratch folders lie, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _own.cache_clear()
    yield tmp_path / f"nas-{os.getuid()}"
    _own.cache_clear()


def holder() -> tuple[subprocess.Popen[str], Path]:
    """A process with a folder in its scratch folder, until its input ends."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_folders_of_killed_processes_alone_are_removed(root: Path) -> None:
    (killed, dead), (living, alive) = holder(), holder()
    assert dead.parent.parent == root == alive.parent.parent and dead.is_dir()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    other = root.parent / "nas-ort-of-another-version"
    other.mkdir()
    (root / "half-made").mkdir()  # by a process that was killed before it could lock anything
    assert dead.is_dir()
    own = scratch_dir()
    assert {path.name for path in root.iterdir()} == {"lock", own.name, alive.parent.name} and other.is_dir()
    assert scratch_dir() == own and own.name.startswith(f"{os.getpid()}-")
    living.communicate()
    assert living.returncode == 0 and {path.name for path in root.iterdir()} == {"lock", own.name}


def test_a_forked_process_has_a_folder_of_its_own_and_leaves_its_parents(root: Path) -> None:
    script = (
        "import os, sys\nfrom nas.scratch import scratch_dir\nown = scratch_dir()\nchild = os.fork()\n"
        "if child == 0:\n    assert scratch_dir() != own\n    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0 and own.is_dir() and len(list(own.parent.iterdir())) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in root.iterdir()] == ["lock"]


def test_a_place_that_is_not_this_users_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"not this user's folder; .*TMPDIR"):
        scratch_dir()
    root.unlink()
    root.write_text("a file")
    with pytest.raises(InputError, match="TMPDIR"):
        scratch_dir()
