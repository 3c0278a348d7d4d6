"""What every searcher promises, for every name in SEARCHERS."""

from pathlib import Path

import pytest

from nas.search import SEARCHERS, Result, searcher_named
from search_spaces import SPACES, Arch, InputError, Space

NAMES = sorted(SEARCHERS)


def judge(arch: Arch) -> Result:
    """A made-up trade-off: wider is slower and better; the slowest are not evaluated."""
    macs = sum(spec.macs(state) for spec, state in arch.steps())
    return Result(macs / 1e6, None if macs > 15e6 else 1 - 1 / (1 + macs / 1e6))


def drive(name: str, space: Space, storage: Path, seed: int, steps: int) -> list[str]:
    searcher = searcher_named(name, space, storage, seed)
    seen = []
    for _ in range(steps):
        arch = searcher.ask()
        seen.append(arch.id)
        searcher.tell(arch, judge(arch))
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_in_the_space_and_follow_from_the_seed(name: str, tmp_path: Path) -> None:
    space = SPACES["hybrid_digits"]()
    searcher = searcher_named(name, space, tmp_path / "a.db", 0)
    assert space.contains(searcher.ask())
    first = drive(name, space, tmp_path / "b.db", 0, 8)
    assert drive(name, space, tmp_path / "c.db", 0, 8) == first
    assert drive(name, space, tmp_path / "d.db", 1, 8) != first


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_goes_on_identically(name: str, tmp_path: Path) -> None:
    """Also past the first generation, and when a proposal was never told."""
    space = SPACES["hybrid_digits"]()
    whole = drive(name, space, tmp_path / "whole.db", 0, 60)
    pieces: list[str] = []
    for steps in (1, 16, 21, 2, 20):
        pieces += drive(name, space, tmp_path / "pieces.db", 0, steps)
        searcher_named(name, space, tmp_path / "pieces.db", 0).ask()  # asked, then killed
    assert pieces == whole
    assert searcher_named(name, space, tmp_path / "pieces.db", 0).told == 60


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_storage_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("not a database " * 100)
    with pytest.raises(InputError, match="cannot be used"):
        searcher_named(name, SPACES["hybrid_digits"](), tmp_path / "a.db", 0)


def test_unknown_searcher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: nsga2"):
        searcher_named("magic", SPACES["hybrid_digits"](), tmp_path / "a.db", 0)
