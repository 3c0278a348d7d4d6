"""Which networks to time to tell where a network's milliseconds go: its blocks repeated, cut off and narrower, in their context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from nas.cost import macs
from search_spaces.arch import Arch
from search_spaces.blocks import BlockSpec, Head, Row
from search_spaces.cascade import Cascade
from search_spaces.spaces.exits import Exits
from search_spaces.states import State, Tokens

__all__ = ["Chain", "Narrower", "Probes", "longer_and_shorter", "make_probes", "row_probes"]

COPIES = (2, 8)  # of a block that are added to the network: least and most, so that they are a third of its work
LENGTHS = (4, 12)  # of a chain, so that its blocks are two thirds of its work
SHARES = (7 / 8, 3 / 4)  # of a size, to see whether time falls with it
STRIPPED = 1 / 16  # of a size, to take one operator out of a block
LEAST = 0.04  # of a block's multiply-accumulates: what saves less shows nothing

Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Narrower:
    """A chain whose blocks have one size cut."""

    what: str
    arch: Arch
    macs_share: float  # of the block's multiply-accumulates that are left


@dataclass(frozen=True)
class Chain:
    """`length` copies of a block in a row, behind the shortest network that leads to it."""

    arch: Arch
    length: int
    rows: Rows  # of one copy
    narrower: tuple[Narrower, ...]


@dataclass(frozen=True)
class Probes:
    """The networks to time for the rows of `arch`."""

    arch: Arch
    skeleton: Arch  # each different block once; of a cascade its first stage
    parts: tuple[Arch, ...]
    chains: tuple[Chain, ...]
    chain_of: tuple[int | None, ...]  # for each block the number of its chain; None where it cannot be repeated

    @property
    def archs(self) -> tuple[Arch, ...]:
        """Each network once."""
        chained = (arch for chain in self.chains for arch in (chain.arch, *(cut.arch for cut in chain.narrower)))
        return tuple(dict.fromkeys((self.arch, self.skeleton, *self.parts, *chained)))


def make_probes(arch: Arch, plateau: bool = True) -> Probes:
    """What tells the time of every block and operator, and with `plateau` whether narrower blocks take less.

    Blocks with equal rows are equal. A block that gives what it takes is timed by more copies of it, where it stands in the
    network and in a chain of its own; every other by cutting the network off before and after it. Chains of blocks of which
    one operator is nearly gone tell operators apart. Of a cascade it is what `Exits` times, and nothing in chains.
    """
    if isinstance(arch, Cascade):
        return Probes(arch, arch.until(0), Exits(arch).probes(), (), (None,) * len(arch.blocks))
    skeleton = _skeleton(arch)
    parts = [_ending(skeleton, count) for count in range(1, len(skeleton.blocks))]
    chains: dict[Rows, Chain | None] = {}
    copied = [_copy(arch, position) for position in range(len(arch.blocks))]
    for position, copy in enumerate(copied):
        if copy is None or _key(copy) in chains:
            continue
        spec, state = copy
        parts.append(_repeated(arch, position, _count(macs(arch) / 3, spec.macs(state), COPIES)))
        chain = chains[_key(copy)] = _chain(arch, position, copy, plateau)
        if chain is not None and len({row.op for row in chain.rows}) > 1:
            parts += [_replaced(chain, spec, narrow) for narrow in _stripped(spec, state)]
    made = {rows: chain for rows, chain in chains.items() if chain is not None}
    numbers = {rows: number for number, rows in enumerate(made)}
    chain_of = tuple(None if copy is None else numbers.get(_key(copy)) for copy in copied)
    return Probes(arch, skeleton, tuple(part for part in parts if part), tuple(made.values()), chain_of)


def row_probes(arch: Arch) -> tuple[Arch, ...]:
    """Short networks that have every row of `arch` between them, from whose times those of the rows are told.

    Each different block stands at the end of the shortest network that leads to it, and one that gives what it takes in a chain
    there too. So what they say of the whole network is a prediction, where `make_probes` times it.
    """
    found: list[Arch | None] = []
    ends, chained = set[Rows](), set[Rows]()
    for position, rows in enumerate(_rows(arch)):
        if rows in ends:
            continue
        ends.add(rows)
        found.append(_lead(arch, position))
        copy = _copy(arch, position)
        if copy is not None and _key(copy) not in chained:
            chained.add(_key(copy))
            chain = _chain(arch, position, copy, plateau=False)
            found.append(None if chain is None else chain.arch)
    return tuple(dict.fromkeys(probe for probe in found if probe is not None))


def longer_and_shorter(arch: Arch) -> tuple[Arch, ...]:
    """The network with one of its blocks up to three times more, without one, and with each once, as far as that leaves it no rows but its own; each network once."""
    own, found = {*arch.rows}, list[Arch | None]([_skeleton(arch)])
    for position in range(len(arch.blocks)):
        found += [*(_repeated(arch, position, copies) for copies in (1, 2, 3)), _without(arch, position)]
    others = dict.fromkeys(other for other in found if other is not None and {*other.rows} <= own)
    return tuple(other for other in others if other != arch)


def _rows(arch: Arch) -> list[Rows]:
    """The rows of each block."""
    return [spec.rows(state) for spec, state in arch.steps()]


def _key(step: tuple[BlockSpec, State]) -> Rows:
    spec, state = step
    return spec.rows(state)


def _network(arch: Arch, blocks: Sequence[BlockSpec]) -> Arch | None:
    """`arch` with other blocks; None where they do not meet."""
    try:
        return replace(arch, blocks=tuple(blocks))
    except ValueError:
        return None


def _without(arch: Arch, position: int) -> Arch | None:
    """The network less one block; None where that changes what the others cost."""
    shorter = _network(arch, (*arch.blocks[:position], *arch.blocks[position + 1 :]))
    rows = _rows(arch)
    del rows[position]
    return shorter if shorter is not None and _rows(shorter) == rows else None


def _repeated(arch: Arch, position: int, copies: int) -> Arch | None:
    """The network with so many copies of a block behind it; None where that changes what the others cost, or copies cost something else.

    A copy of a block that lays out a map as tokens has no map to lay out.
    """
    after = position + 1
    longer = _network(arch, (*arch.blocks[:after], *[arch.blocks[position]] * copies, *arch.blocks[after:]))
    if longer is None:
        return None
    rows, found = _rows(arch), _rows(longer)
    copied = {*found[after : after + copies]}
    same = found[:after] + found[after + copies :] == rows and len(copied) == 1
    return longer if same and {*copied.pop()} <= {*rows[position]} else None


def _copy(arch: Arch, position: int) -> tuple[BlockSpec, State] | None:
    """A second application of a block with its input; None where it cannot be repeated."""
    longer = _repeated(arch, position, 1)
    return None if longer is None else longer.steps()[position + 1]


def _skeleton(arch: Arch) -> Arch:
    """The network with each different block once, as far as the others allow."""
    for position in reversed(range(len(arch.blocks))):
        rows = _rows(arch)
        shorter = _without(arch, position) if rows.count(rows[position]) > 1 else None
        arch = arch if shorter is None else shorter
    return arch


def _ending(arch: Arch, count: int) -> Arch | None:
    """The first blocks of a network, and a head of one class that does next to nothing."""
    state = arch.states[count]
    token = isinstance(state, Tokens) and state.prefix > 0
    return _network(arch, (*arch.blocks[:count], Head(1, pool="token") if token else Head(1, mean_first=True)))


def _count(wanted: float, work: int, bounds: tuple[int, int]) -> int:
    """How many blocks of `work` make up `wanted`, within bounds."""
    least, most = bounds
    return max(least, min(most, ceil(wanted / work))) if work else most


def _lead(arch: Arch, position: int) -> Arch | None:
    """The shortest network with a block and what leads to it, as far as the others allow; what follows the block is cut off."""
    lead = arch if position == len(arch.blocks) - 1 else _ending(arch, position + 1)
    for earlier in reversed(range(position)):
        shorter = None if lead is None else _without(lead, earlier)
        lead = lead if shorter is None else shorter
    return lead


def _chain(arch: Arch, position: int, copy: tuple[BlockSpec, State], plateau: bool) -> Chain | None:
    """The chain of a block, as short as the others allow."""
    lead = _lead(arch, position)
    if lead is None:
        return None
    spec, state = copy
    place, work = len(lead.blocks) - 2, spec.macs(state)
    length = _count(2 * (macs(lead) - work), work, LENGTHS)
    longer = _repeated(lead, place, length - 1)
    if longer is None:
        return None
    chain = Chain(longer, length, _key(copy), ())
    return replace(chain, narrower=tuple(_narrower(chain, spec, state))) if plateau else chain


def _replaced(chain: Chain, spec: BlockSpec, other: BlockSpec) -> Arch | None:
    """The chain with another block in place of its own."""
    blocks = chain.arch.blocks
    start = len(blocks) - 1 - chain.length
    assert all(block == spec for block in blocks[start:-1])
    return _network(chain.arch, (*blocks[:start], *[other] * chain.length, blocks[-1]))


def _narrower(chain: Chain, spec: BlockSpec, state: State) -> Iterator[Narrower]:
    """Chains of the next smaller blocks, as far as their work is noticeably less."""
    cuts = {what: block for share in SHARES for what, block in spec.narrower(state, share).items()}
    for what, block in cuts.items():
        share = block.macs(state) / spec.macs(state)
        arch = _replaced(chain, spec, block)
        if arch is not None and share <= 1 - LEAST:
            yield Narrower(what, arch, share)


def _stripped(spec: BlockSpec, state: State) -> list[BlockSpec]:
    """For each operator that can shrink, the block with next to nothing of it."""
    own, least = set(spec.rows(state)), dict[str, BlockSpec]()
    for block in spec.narrower(state, STRIPPED).values():
        for op in {row.op for row in block.rows(state) if row not in own}:
            if op not in least or block.macs(state) < least[op].macs(state):
                least[op] = block
    return list(least.values())
