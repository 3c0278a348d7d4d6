"""Normalising images inside a network, for one that was trained on others than it is given, see `compress.seeing`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.states import Map, State

__all__ = ["Normalise"]


class NormaliseModule(nn.Module):
    """(B, C, H, W) -> (B, C, H, W), each channel less its mean, over its deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            given = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, given.reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class Normalise(BlockSpec):
    """Takes `mean` from an image and divides by `std`: a value for each channel, or one for all."""

    kind: ClassVar[str] = "normalise"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse deviations that nothing can be divided by, and other numbers of them than of means."""
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError(f"there are as many positive std as mean, got {self.mean} and {self.std}")

    def output(self, state: State) -> Map:
        if not isinstance(state, Map):
            raise ValueError(f"images are normalised, got {state}")
        if len(self.mean) not in (1, state.channels):
            raise ValueError(f"there are {len(self.mean)} means for {state.channels} channels")
        return state

    def macs(self, state: State) -> int:
        self.output(state)
        return 0

    def params(self, state: State) -> int:
        self.output(state)
        return 0

    def rows(self, state: State) -> tuple[Row, ...]:
        source = self.output(state)
        return (Row("normalise", source.positions, (("c", source.channels),)),)

    def build(self, state: State) -> nn.Module:
        self.output(state)
        return NormaliseModule(self.mean, self.std)
