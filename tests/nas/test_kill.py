"""`nas measure`, killed at random moments and resumed."""

from pathlib import Path

import pytest

from benchmarks.latency_kill import kill_and_resume


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_kills_lose_and_double_nothing_and_leave_no_files(tmp_path: Path) -> None:
    found = kill_and_resume(3, seed=3, rounds=4, folder=tmp_path)
    assert found["faults"] == []
    assert found["kills"] == 3 and found["measurements"] >= 1 and found["rows"] == 30
    assert found["kills_that_left_temporary_files"] >= 1, "there was something to remove"
