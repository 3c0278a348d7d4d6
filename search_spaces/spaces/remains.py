"""What may be left of a ViT when heads, widths, neurons and whole blocks are removed, and how to time it."""

from dataclasses import replace
from functools import cached_property
from itertools import product

import numpy as np

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, BlockSpec, Row
from search_spaces.blocks.residual import hidden_width
from search_spaces.states import Tokens

__all__ = ["Remains", "check_plain", "key_widths", "neurons", "widths"]

GRID = 8  # widths and neurons are multiples of it, as kernels like
WIDTHS, NEURONS = 4, 16  # different widths of a head, and numbers of neurons of a block
CHAIN = 4  # equal blocks in a probe: enough to tell a block's time from the fixed part


def widths(width: int) -> list[int]:
    """Channels of q and k, or of v, that a head may be left with, the most first."""
    step = max(GRID, GRID * round(width / WIDTHS / GRID))
    return [width, *range(step * ((width - 1) // step), 0, -step)]


def key_widths(spec: MB3D) -> list[int]:
    """Channels that q and k of a block may be left with, the most first; those that are normed stay."""
    return [spec.key_dim] if spec.qk_norm else widths(spec.key_dim)


def neurons(hidden: int) -> list[int]:
    """Hidden neurons that a block may be left with, the most first."""
    step = max(GRID, GRID * round(hidden / NEURONS / GRID))
    return [hidden, *range(step * ((hidden - 1) // step), 0, -step)]


def check_plain(arch: Arch) -> None:
    """Refuse what is no plain ViT.

    Raises:
        ValueError: it has no attention, or not on tokens of which none were dropped, in blocks one after the other without loops or groups.
    """
    positions = [i for i, spec in enumerate(arch.blocks) if isinstance(spec, MB3D)]
    blocks = [spec for spec in arch.blocks if isinstance(spec, MB3D)]
    plain = all(spec.loops == 1 and not spec.groups and not spec.nll for spec in blocks)
    together = bool(positions) and positions[-1] - positions[0] + 1 == len(positions)
    on_tokens = all(isinstance(arch.states[i], Tokens) for i in positions)
    if not (plain and together and on_tokens) or arch.locations:
        raise ValueError(
            "it takes a plain ViT, whose blocks of attention follow each other on tokens of which none is dropped, without loops or groups"
        )


class Remains:
    """The networks that a dense ViT may become: fewer heads, narrower q and k or v, fewer neurons, fewer blocks.

    No `Space`: a block that is gone may be any of those that are alike, so a network does not tell its code.
    """

    def __init__(self, arch: Arch) -> None:
        """What may be left of `arch`.

        Raises:
            ValueError: see `check_plain`.
        """
        check_plain(arch)
        self.arch, self.name, self.classes = arch, f"remains-{arch.id}", arch.classes

    @cached_property
    def kinds(self) -> tuple[tuple[MB3D, Tokens], ...]:
        """Different blocks with what they get, each once."""
        found = [(spec, replace(state, scored_by=None)) for spec, state in self._blocks()]
        return tuple(dict.fromkeys(found))

    def _blocks(self) -> list[tuple[MB3D, Tokens]]:
        return [(spec, s) for spec, s in self.arch.steps() if isinstance(spec, MB3D) and isinstance(s, Tokens)]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of every size of every block, and of the other blocks."""
        return tuple(sorted({row for probe in self.probes() for row in probe.rows}))

    def probes(self) -> tuple[Arch, ...]:
        """Chains of equal blocks in place of the network's, of every form of attention with few neurons, and of every number of neurons."""
        found: dict[Arch, None] = {}
        for spec, state in self.kinds:
            hidden = hidden_width(state.channels, spec.ratio)
            counts = neurons(hidden)
            least = replace(spec, ratio=counts[-1] / state.channels)
            shapes = product(range(1, spec.heads + 1), key_widths(spec), widths(spec.value_dim))
            for heads, key_dim, value_dim in shapes:
                form = replace(least, heads=heads, key_dim=key_dim, value_dim=value_dim)
                found[self._chain([form] * CHAIN)] = None
            narrow = replace(spec, heads=1, key_dim=key_widths(spec)[-1], value_dim=widths(spec.value_dim)[-1])
            for count in counts:
                found[self._chain([replace(narrow, ratio=count / state.channels)] * CHAIN)] = None
            found[self._chain([spec])] = None
        return tuple(found)

    def _chain(self, blocks: list[BlockSpec]) -> Arch:
        """Other blocks between the beginning and the end of the network."""
        positions = [i for i, spec in enumerate(self.arch.blocks) if isinstance(spec, MB3D)]
        before, after = self.arch.blocks[: positions[0]], self.arch.blocks[positions[-1] + 1 :]
        return replace(self.arch, blocks=(*before, *blocks, *after))

    def sample(self, rng: np.random.Generator) -> Arch:
        """A network with every size of every block drawn uniformly; one block of eight is left out."""
        return self._drawn(rng, 0.0)

    def spread(self, rng: np.random.Generator) -> Arch:
        """A network of any cost: a share is drawn, and each size is the dense network's with that probability, else uniform."""
        return self._drawn(rng, rng.random())

    def _drawn(self, rng: np.random.Generator, whole: float) -> Arch:
        blocks: list[BlockSpec] = []
        last: list[BlockSpec] = []
        for spec, state in self._blocks():

            def one(values: list[int]) -> int:
                return values[0] if rng.random() < whole else int(rng.choice(values))

            count = one(neurons(hidden_width(state.channels, spec.ratio)))
            drawn = replace(
                spec,
                heads=one(list(range(spec.heads, 0, -1))),
                key_dim=one(key_widths(spec)),
                value_dim=one(widths(spec.value_dim)),
                ratio=count / state.channels,
            )
            last = [drawn]
            blocks += [] if rng.random() * 8 < 1 - whole else [drawn]
        return self._chain(blocks or last)
