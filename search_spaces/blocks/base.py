"""What every block kind promises: its output state, its cost in closed form, its latency-table rows, its module."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from search_spaces.regrid import Grid
from search_spaces.states import State

__all__ = ["BlockSpec", "Row"]


@dataclass(frozen=True, order=True)
class Row:
    """Key of one latency-table row: a sub-block at the shapes it runs on.

    Keys are joint over all that moves the time, because per-dimension linear tables are known to fail for
    transformers. Only `positions` may ever be interpolated, and only behind a pruning location (`kept`), where any
    number of tokens may be left.
    """

    op: str  # the sub-block, such as "mb4d.ffn"
    positions: int  # places on the map, or tokens, at the input
    dims: tuple[tuple[str, int], ...]  # everything else that decides the time, in a fixed order

    @property
    def key(self) -> str:
        """The row's name in a table file, such as `mb4d.ffn@256[c=32,hidden=128]`."""
        return f"{self.op}@{self.positions}[{','.join(f'{name}={value}' for name, value in self.dims)}]"


class BlockSpec(ABC):
    """Base of the frozen dataclasses that describe a block. All that must know a block kind lives in its own file.

    Every method takes the input state and raises `ValueError` where the block cannot run on it.
    """

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """The block in a few characters, for reports."""
        return self.kind

    @property
    def passes(self) -> int:
        """How often the run of neighbouring blocks with this number is gone through; 1 for a block by itself."""
        return 1

    @abstractmethod
    def output(self, state: State) -> State:
        """The state that the block gives for this input state."""

    @abstractmethod
    def macs(self, state: State) -> int:
        """Multiply-accumulates of convolutions, linear layers and matmuls for one image; all else counts zero."""

    @abstractmethod
    def params(self, state: State) -> int:
        """Number of learned values."""

    @abstractmethod
    def rows(self, state: State) -> tuple[Row, ...]:
        """The latency-table rows whose times add up to the block's."""

    def row_macs(self, state: State) -> tuple[int | None, ...]:
        """Multiply-accumulates of each of the `rows`, which add up to the block's; None where they are not told apart."""
        count = len(self.rows(state))
        return (self.macs(state),) if count == 1 else (None,) * count

    def narrower(self, state: State, share: float) -> Mapping[str, "BlockSpec"]:
        """The block with one of its sizes at `share`, rounded up and at least one less, by what was cut: "heads 3 → 2".

        Its input and output stay as they are. Sizes that cannot shrink are left out.
        """
        return {}

    def grid_params(self, state: State) -> Mapping[str, str]:
        """Parameters that mean something else on another grid, and the grid's name: networks share them only on equal grids."""
        return {}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        """One of the `grid_params`, learned on the grid `source`, for the grid of `state`; linear in it, itself on equal grids.

        Its dimensions that are not the grid's stay as they are.
        """
        raise ValueError(f"{self.kind} has no parameter {name} that belongs to a grid")

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        """A parameter in the pieces that networks share, views of it: a smaller block's are leading parts, in every dimension, of a larger one's."""
        return {name: tensor}

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        """The parameter of the pieces that `split` gives, differentiable."""
        return parts[name]

    def shallower(self, loops: int) -> "BlockSpec":
        """The block applied at most `loops` times; the same weights, or fewer, fit it."""
        return self

    @abstractmethod
    def build(self, state: State) -> nn.Module:
        """The module with freshly initialised weights; parameter names do not depend on sizes, so banks can share them."""
