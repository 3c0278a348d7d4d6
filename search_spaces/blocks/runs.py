"""Channels in runs: a depthwise convolution that widens gives a run for each channel, a 1x1 convolution in groups takes one for each."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from search_spaces.blocks.base import BlockSpec
from search_spaces.states import State

__all__ = ["Runs", "RunsSpec", "check_groups", "shuffled"]

Runs = tuple[int, tuple[int, ...]]
"""A dimension of a parameter and how many runs lie in it, runs of runs one after the other."""


def shuffled(x: Tensor, runs: int) -> Tensor:
    """Channels (B, runs * n, H, W), run after run, as the first of every run, the second of every run, and so on (ShuffleNet, arXiv 1707.01083)."""
    if runs == 1:
        return x
    batch, channels, height, width = x.shape
    return x.reshape(batch, runs, channels // runs, height, width).transpose(1, 2).reshape(x.shape)


def check_groups(kind: str, groups: int, *channels: int) -> None:
    """Refuse channels that a 1x1 convolution cannot cut into equal groups.

    Raises:
        ValueError: `groups` does not divide one of the numbers of channels.
    """
    wrong = [count for count in channels if count % groups]
    if wrong:
        raise ValueError(f"{kind} cannot cut {wrong[0]} channels into {groups} equal groups")


class RunsSpec(BlockSpec):
    """Base of specs some of whose parameters lie in runs: a smaller block has the leading part of every run, not of all channels."""

    @abstractmethod
    def runs(self, name: str, state: State) -> Runs | None:
        """Those of a parameter, None where its channels are one run."""

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        found = self.runs(name, state)
        return {name: tensor if found is None else torch.unflatten(tensor, found[0], (*found[1], -1))}

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        found = self.runs(name, state)
        return parts[name] if found is None else parts[name].flatten(found[0], found[0] + len(found[1]))
