"""Timing in another process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas import elsewhere
from nas.elsewhere import time_elsewhere
from nas.target import Target
from nas.visits import REFERENCE, Visit
from search_spaces import zoo
from search_spaces.errors import InputError
from tests.nas.test_measure import TARGET, tiny

ARCHS = (tiny().largest, tiny().smallest)


def test_visits_are_handed_over_one_by_one_and_go_on_where_they_ended() -> None:
    seen: list[Visit] = []
    first = time_elsewhere(ARCHS, ARCHS[0], TARGET, rounds=2, seed=0, record=seen.append)
    assert seen == first and {visit.network for visit in first} == {REFERENCE, *(arch.id for arch in ARCHS)}
    rounds = 3 + max(visit.round for visit in first)  # of which a disturbed machine has made more than two
    weights = {arch.id: 1.0 for arch in ARCHS}
    more = time_elsewhere(ARCHS, ARCHS[0], TARGET, rounds=rounds, seed=0, done=first, weights=weights)
    assert more[: len(first)] == first and {visit.segment for visit in more} == {0, 1}
    made = [(visit.round, visit.network) for visit in more if visit.network != REFERENCE]
    assert len(set(made)) == len(made) and {number for number, _ in made} >= {*range(rounds)}


def test_what_cannot_be_timed_is_refused_in_the_line_of_the_other_process() -> None:
    late = zoo.arch("asvit_deit_tiny")
    with pytest.raises(InputError, match="one by one"):
        time_elsewhere([late], late, Target.parse("cpu-ort-fp32-b2-t1"), rounds=1, seed=0)


@pytest.mark.parametrize(
    ("server", "error", "line"),
    [
        ("import os; input(); os.kill(os.getpid(), 9)", InputError, r"was killed \(signal 9\).*--resume"),
        ("import sys; input(); sys.exit(1)", RuntimeError, "its error is on stderr"),
    ],
)
def test_a_process_that_ends_without_an_answer_is_told_of(
    server: str, error: type[Exception], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "SERVER", server)
    with pytest.raises(error, match=line):
        time_elsewhere(ARCHS, ARCHS[0], TARGET, rounds=1, seed=0)


SCRIPT = """
from pathlib import Path
from nas.elsewhere import time_elsewhere
from tests.nas.test_elsewhere import ARCHS, TARGET
def tell(visit):
    print(*[name for task in Path("/proc/self/task").glob("*/children") for name in task.read_text().split()], flush=True)
time_elsewhere(ARCHS, ARCHS[0], TARGET, rounds=100000, seed=0, record=tell)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc to find the other process")
def test_the_other_process_ends_with_the_one_that_asked() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=root, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    (child,) = process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(child)}").exists() and "Z" not in Path(f"/proc/{int(child)}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "it goes on without anybody to tell"
        time.sleep(0.05)
