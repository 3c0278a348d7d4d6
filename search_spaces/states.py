"""What travels between blocks: the shapes a block accepts and gives."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Earlier", "Logits", "Map", "Scorer", "State", "Streams", "Tokens", "tokens_of"]


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


class Earlier(NamedTuple):
    """What the blocks of a cascade's later stage can reuse of the stage before it."""

    channels: int  # of its last tokens
    patches: int  # among them
    tokens: int  # all of them, between every two of which there are relations
    width: int = 0  # of what a block makes of its features, and puts at its MLP's input; 0 where they are not reused
    hidden: int = 0  # neurons that a block makes it with
    joint: bool = True  # whether the MLP's norm is over both
    relations: bool = False  # whether there are relations for the attention's logits


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
    earlier: Earlier | None = None  # the stage before this one, of a cascade
    asked: bool = False  # whether the stage behind it asks for the logits of the attention that gets these

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
