"""Searchers, one file each; a new one is one line in `SEARCHERS`."""

from collections.abc import Callable
from pathlib import Path

from nas.search.searcher import Result, Searcher
from search_spaces import Space
from search_spaces.errors import InputError

__all__ = ["SEARCHERS", "Result", "Searcher", "check_searcher", "searcher_named"]


def _nsga2(space: Space, storage: Path, seed: int) -> Searcher:
    from nas.search.nsga2 import Nsga2  # Optuna takes a second to import

    return Nsga2(space, storage, seed)


SEARCHERS: dict[str, Callable[[Space, Path, int], Searcher]] = {"nsga2": _nsga2}


def searcher_named(name: str, space: Space, storage: Path, seed: int) -> Searcher:
    """The searcher `name` on its storage file.

    Raises:
        InputError: there is no such searcher.
    """
    check_searcher(name)
    return SEARCHERS[name](space, storage, seed)


def check_searcher(name: str) -> None:
    """Refuse a name that is no searcher's.

    Raises:
        InputError: it is none.
    """
    if name not in SEARCHERS:
        raise InputError(f"no searcher called {name!r}; known: {', '.join(SEARCHERS)}")
