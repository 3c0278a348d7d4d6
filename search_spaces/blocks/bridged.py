"""What blocks of Mobile-Former have in common, whatever their map goes through (arXiv 2108.05895, section 3.2)."""

from abc import abstractmethod
from typing import NamedTuple

from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.runs import RunsSpec
from search_spaces.blocks.streams import BRIDGE_HEADS, FORMER_HEADS, Former, ToFormer, ToMobile, Work
from search_spaces.states import State, Streams

__all__ = ["BridgedSpec", "Part", "PartedSpec", "streams_of", "to_former_part"]


class Part(NamedTuple):
    """A sub-block: its latency-table row, and what it costs."""

    row: Row
    work: Work


def streams_of(state: State) -> Streams:
    """The state, which must be a map with tokens beside it.

    Raises:
        ValueError: it is another one, or the attention's heads cannot be cut from it.
    """
    if not isinstance(state, Streams):
        raise ValueError(f"a block of two streams takes a map with tokens beside it (side_tokens), got {state}")
    if state.channels % BRIDGE_HEADS or state.width % FORMER_HEADS:
        raise ValueError(
            f"bridges have {BRIDGE_HEADS} heads on the map's channels and {FORMER_HEADS} on the tokens', "
            f"but {state.channels} and {state.width} cannot be cut so"
        )
    return state


def _bridge(op: str, state: Streams) -> Row:
    dims = (("c", state.channels), ("tokens", state.count), ("d", state.width))
    return Row(f"bridge.{op}", state.map.positions, dims)


def to_former_part(state: Streams) -> Part:
    """The bridge from this map to these tokens."""
    return Part(_bridge("to_former", state), ToFormer.work(state))


class PartedSpec(BlockSpec):
    """Base of the blocks that are made of sub-blocks with a row each."""

    @abstractmethod
    def _parts(self, state: State) -> list[Part]:
        """All sub-blocks, in the order in which they run."""

    def macs(self, state: State) -> int:
        return sum(part.work.macs for part in self._parts(state))

    def params(self, state: State) -> int:
        return sum(part.work.params for part in self._parts(state))

    def rows(self, state: State) -> tuple[Row, ...]:
        return tuple(part.row for part in self._parts(state))

    def row_macs(self, state: State) -> tuple[int, ...]:
        return tuple(part.work.macs for part in self._parts(state))


class BridgedSpec(PartedSpec, RunsSpec):
    """Base of the blocks of two streams: the tokens read from the map, then from each other; the map's own layers; its places read from the tokens."""

    to_former: bool
    to_mobile: bool

    @abstractmethod
    def output(self, state: State) -> Streams:
        """Map and tokens that the block gives."""

    @abstractmethod
    def _mobile(self, state: State) -> Part:
        """The map's own layers."""

    def _parts(self, state: State) -> list[Part]:
        """All sub-blocks, in the order in which they run."""
        source, out = streams_of(state), self.output(state)
        former = Part(Row("former", source.count, (("d", source.width),)), Former.work(source))
        before = [to_former_part(source)] if self.to_former else []
        after = [Part(_bridge("to_mobile", out), ToMobile.work(out))] if self.to_mobile else []
        return [*before, former, self._mobile(state), *after]
