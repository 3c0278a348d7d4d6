"""What a search algorithm is: it proposes networks and is told how they did; evaluation happens elsewhere."""

from dataclasses import dataclass
from typing import Protocol

from search_spaces.arch import Arch

__all__ = ["Result", "Searcher"]


@dataclass(frozen=True)
class Result:
    """What is known of a network: predicted milliseconds, and accuracy from 0 to 1 (None where it was passed over)."""

    ms: float
    accuracy: float | None


class Searcher(Protocol):
    """Ask and tell, in turn. All state is on the disk after `tell`, so a new searcher on the same storage goes on identically."""

    def ask(self) -> Arch:
        """The next network to look at; it may be one that was told before."""

    def tell(self, arch: Arch, result: Result) -> None:
        """How the network of the last `ask` did."""

    @property
    def told(self) -> int:
        """How many results were told, by earlier processes too."""

    @property
    def passed(self) -> int:
        """How many of the last results, in a row, were of networks that were not evaluated."""
