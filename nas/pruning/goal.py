"""What a pruned network is to keep to: a time, an accuracy, or both."""

from collections.abc import Sequence
from dataclasses import dataclass

from nas.search.places import budgets_each
from search_spaces.errors import InputError

__all__ = ["Floor", "Goal"]

ROUNDING = 1e-9  # by which accuracies that are equal may differ


@dataclass(frozen=True)
class Goal:
    """Budgets in ms, once for all targets or once each, or a speed-up, and how much accuracy on search-validation may be lost; not none of them."""

    budgets_ms: tuple[float, ...] = ()
    speedup: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse what says nothing or too much."""
        if self.budgets_ms and self.speedup is not None:
            raise InputError("give either --budget-ms MS or --speedup X")
        if not self.budgets_ms and self.speedup is None and self.max_drop is None:
            raise InputError(
                "give either --budget-ms MS or --speedup X, or the accuracy that may be lost: --max-drop X"
            )
        if self.speedup is not None and not 1 < self.speedup < float("inf"):
            raise InputError(f"--speedup must be above 1 and finite, got {self.speedup:g}")
        for budget in self.budgets_ms:
            if not 0 < budget < float("inf"):
                raise InputError(f"--budget-ms must be positive and finite, got {budget:g}")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise InputError(
                f"--max-drop is a share of the images from 0 to below 1, such as 0.01, got {self.max_drop:g}"
            )

    def check(self, targets: int) -> None:
        """Refuse what cannot be on so many targets.

        Raises:
            InputError: there are budgets for other than all or each, or, of several, an accuracy without a budget.
        """
        if len(self.budgets_ms) > 1:
            budgets_each([(budget,) for budget in self.budgets_ms], targets)
        if targets > 1 and not self.budgets_ms and self.speedup is None:
            raise InputError(
                "--max-drop alone looks for the fastest network on one target; give one --table or --target, or add --budget-ms or "
                "--speedup"
            )

    def budgets(self, dense_ms: Sequence[float]) -> tuple[float, ...] | None:
        """Milliseconds on each target, where the dense network takes so many on each."""
        if self.speedup is not None:
            return tuple(ms / self.speedup for ms in dense_ms)
        each = self.budgets_ms if len(self.budgets_ms) > 1 else self.budgets_ms * len(dense_ms)
        return each or None


@dataclass(frozen=True)
class Floor:
    """How far accuracy on search-validation may fall below the dense network's."""

    max_drop: float
    dense: float

    def holds(self, accuracy: float) -> bool:
        """Whether an accuracy is near enough."""
        return accuracy >= self.dense - self.max_drop - ROUNDING
