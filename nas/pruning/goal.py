"""What a pruned network is to keep to: a time, an accuracy, or both."""

from dataclasses import dataclass

from search_spaces.errors import InputError

__all__ = ["Floor", "Goal"]

ROUNDING = 1e-9  # by which accuracies that are equal may differ


@dataclass(frozen=True)
class Goal:
    """A budget in ms or a speed-up, and how much accuracy on search-validation may be lost; not all of them None."""

    budget_ms: float | None = None
    speedup: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse what says nothing or too much."""
        if self.budget_ms is not None and self.speedup is not None:
            raise InputError("give either --budget-ms MS or --speedup X")
        if self.budget_ms is None and self.speedup is None and self.max_drop is None:
            raise InputError(
                "give either --budget-ms MS or --speedup X, or the accuracy that may be lost: --max-drop X"
            )
        if self.speedup is not None and not 1 < self.speedup < float("inf"):
            raise InputError(f"--speedup must be above 1 and finite, got {self.speedup:g}")
        if self.budget_ms is not None and not 0 < self.budget_ms < float("inf"):
            raise InputError(f"--budget-ms must be positive and finite, got {self.budget_ms:g}")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(
                f"--max-drop is a share of the images from 0 to below 1, such as 0.01, got {self.max_drop:g}"
            )

    def budget(self, dense_ms: float) -> float | None:
        """Milliseconds, where the dense network takes so many."""
        return dense_ms / self.speedup if self.speedup is not None else self.budget_ms


@dataclass(frozen=True)
class Floor:
    """How far accuracy on search-validation may fall below the dense network's."""

    max_drop: float
    dense: float

    def holds(self, accuracy: float) -> bool:
        """Whether an accuracy is near enough."""
        return accuracy >= self.dense - self.max_drop - ROUNDING
