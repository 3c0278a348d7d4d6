"""What travels between blocks: the shapes a block accepts and gives."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Logits", "Map", "Scorer", "State", "Streams", "Tokens", "tokens_of"]


@dataclass(frozen=True)
class Map:
    """A feature map; tensors are (B, channels, height, width)."""

    channels: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Number of places on the map."""
        return self.height * self.width


class Scorer(NamedTuple):
    """The attention that patches can be scored by, or compared."""

    heads: int
    value: int  # width of each head's values
    key: int = 0  # and of its keys; 0 where nobody asks


@dataclass(frozen=True)
class Tokens:
    """A sequence of tokens, the patches among them in the row order of `grid`; tensors are (B, count, channels)."""

    count: int  # the first `prefix` tokens, the patches that are left, and last the fused token
    channels: int
    grid: tuple[int, int]
    prefix: int = 0  # leading tokens that lie on no place, such as a class token
    pruned: bool = False  # whether patches were dropped
    scored_by: Scorer | None = None  # the attention that can score the patches
    fused: bool = False  # whether the last token stands for all patches that were not kept; it lies on no place
    sized: bool = False  # whether patches were merged, so that a token may stand for several

    @property
    def patches(self) -> int:
        """Tokens that lie on the grid."""
        return self.count - self.prefix - self.fused


@dataclass(frozen=True)
class Streams:
    """A feature map and learned tokens beside it; tensors are pairs of (B, channels, height, width) and (B, count, width)."""

    map: Map
    count: int  # of the tokens
    width: int  # of each

    @property
    def channels(self) -> int:
        """Those of the map."""
        return self.map.channels


@dataclass(frozen=True)
class Logits:
    """Class scores; tensors are (B, classes)."""

    classes: int


State = Map | Tokens | Streams | Logits


def tokens_of(state: Map | Tokens | Streams) -> Tokens:
    """The token view of a map, row by row, without tokens beside it; tokens stay as they are."""
    if isinstance(state, Tokens):
        return state
    state = state.map if isinstance(state, Streams) else state
    return Tokens(state.positions, state.channels, (state.height, state.width))
