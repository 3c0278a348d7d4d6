"""The hybrid space: MB4D blocks up to a partition point, MB3D blocks after it; widths, depths and FFN ratios."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, BlockSpec, Embed, Head, Row, Stem
from search_spaces.space import Choice, Code, Space
from search_spaces.states import State

__all__ = ["Hybrid", "Stage", "hybrid_digits"]

CHAIN = 6  # equal blocks in a probe: enough to tell a block's time from the fixed part


@dataclass(frozen=True)
class Stage:
    """The widths and depths that one stage may have, ascending."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """A network of the space, spelled out: the ratio of each block, by stage, 4D blocks before 3D ones."""

    widths: tuple[int, ...]
    mb4d: tuple[tuple[float, ...], ...]  # FFN ratios per stage
    mb3d: tuple[float, ...]  # FFN ratios of the trailing blocks of the last stage


class Hybrid(Space):
    """Stages of MB4D blocks whose last one ends in MB3D blocks (EfficientFormer, arXiv 2206.01191).

    Weights: a 4D block takes the slot of its place in the stage; 3D slots are aligned from the end, so that the last
    block of every network is the same one. Widths and FFN ratios take leading channels.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        stages: tuple[Stage, ...],
        mb3d: tuple[int, ...],
        ratios: tuple[float, ...],
        block: MB3D,
        classes: int,
    ) -> None:
        """Set the choices; `mb3d` lists how many trailing blocks of the last stage may be 3D, `block` gives their heads."""
        self.name, self.image_size, self.classes = name, image_size, classes
        self.stages, self.mb3d, self.ratios, self.block = stages, mb3d, ratios, block
        self.depths = [max(stage.depths) for stage in stages]
        choices = [Choice(f"width{s}", stage.widths) for s, stage in enumerate(stages)]
        choices += [Choice(f"depth{s}", stage.depths) for s, stage in enumerate(stages)]
        choices.append(Choice("mb3d", mb3d))
        choices += [Choice(f"ratio{s}.mb4d.{i}", ratios) for s, depth in enumerate(self.depths) for i in range(depth)]
        choices += [Choice(f"ratio{len(stages) - 1}.mb3d.{i}", ratios) for i in range(max(mb3d))]
        self.choices = tuple(choices)
        self._at = {choice.name: position for position, choice in enumerate(choices)}

    def repair(self, code: Code) -> Code:
        """Cut the 3D count to the last stage's depth, and set the ratios of absent blocks to 0."""
        limits = np.array([len(choice.values) - 1 for choice in self.choices])
        given = np.clip(np.asarray(code, dtype=np.int64), 0, limits)
        last = len(self.stages) - 1
        depths = [int(self._value(given, f"depth{s}")) for s in range(last + 1)]
        allowed = [i for i, count in enumerate(self.mb3d) if count <= depths[last]]
        wanted = self._value(given, "mb3d")
        given[self._at["mb3d"]] = max(
            (i for i in allowed if self.mb3d[i] <= wanted), key=lambda i: self.mb3d[i], default=allowed[0]
        )
        trailing = int(self._value(given, "mb3d"))
        active = {f"ratio{last}.mb3d.{i}" for i in range(trailing)}
        for s, depth in enumerate(depths):
            active |= {f"ratio{s}.mb4d.{i}" for i in range(depth - trailing if s == last else depth)}
        for name, position in self._at.items():
            if name.startswith("ratio") and name not in active:
                given[position] = 0
        return given

    def _value(self, code: Code, name: str) -> float:
        position = self._at[name]
        return self.choices[position].values[int(code[position])]

    def _build(self, code: Code) -> Arch:
        last = len(self.stages) - 1
        trailing = int(self._value(code, "mb3d"))
        counts = [int(self._value(code, f"depth{s}")) - (trailing if s == last else 0) for s in range(last + 1)]
        return self.arch(
            Shape(
                tuple(int(self._value(code, f"width{s}")) for s in range(last + 1)),
                tuple(
                    tuple(self._value(code, f"ratio{s}.mb4d.{i}") for i in range(count))
                    for s, count in enumerate(counts)
                ),
                tuple(self._value(code, f"ratio{last}.mb3d.{i}") for i in reversed(range(trailing))),
            )
        )

    def arch(self, shape: Shape) -> Arch:
        """The network of a shape, whose widths and counts need not be among the choices."""
        blocks: list[BlockSpec] = []
        for s, (width, ratios) in enumerate(zip(shape.widths, shape.mb4d, strict=True)):
            blocks.append(Embed(width) if s else Stem(width))
            blocks += [MB4D(ratio, self.block.layer_scale) for ratio in ratios]
        blocks += [self._mb3d(ratio) for ratio in shape.mb3d]
        return Arch(self.image_size, 3, (*blocks, Head(self.classes)))

    def _mb3d(self, ratio: float) -> MB3D:
        return MB3D(self.block.heads, self.block.key_dim, self.block.value_dim, ratio, self.block.layer_scale)

    @staticmethod
    def shape(arch: Arch) -> Shape:
        """The shape of a network that `arch` made."""
        widths = tuple(spec.width for spec in arch.blocks if isinstance(spec, Stem | Embed))
        mb4d: list[list[float]] = []
        for spec in arch.blocks:
            if isinstance(spec, Stem | Embed):
                mb4d.append([])
            elif isinstance(spec, MB4D) and mb4d:
                mb4d[-1].append(spec.ratio)
        mb3d = tuple(spec.ratio for spec in arch.blocks if isinstance(spec, MB3D))
        return Shape(widths, tuple(tuple(ratios) for ratios in mb4d), mb3d)

    def _read(self, arch: Arch) -> Code | None:
        shape, last = self.shape(arch), len(self.stages) - 1
        if len(shape.mb4d) != last + 1:
            return None
        values: dict[str, float] = {"mb3d": len(shape.mb3d)}
        for s, (width, ratios) in enumerate(zip(shape.widths, shape.mb4d, strict=True)):
            values |= {f"width{s}": width, f"depth{s}": len(ratios) + (len(shape.mb3d) if s == last else 0)}
            values |= {f"ratio{s}.mb4d.{i}": ratio for i, ratio in enumerate(ratios)}
        values |= {f"ratio{last}.mb3d.{i}": ratio for i, ratio in enumerate(reversed(shape.mb3d))}
        code = np.zeros(len(self.choices), dtype=np.int64)
        for name, value in values.items():
            position = self._at.get(name)
            if position is None or value not in self.choices[position].values:
                return None
            code[position] = self.choices[position].values.index(value)
        return code

    @property
    def size(self) -> int:
        """Number of different networks: widths times, for every depth and partition point, the ratios of its blocks."""
        total = 0
        for depths in product(*(stage.depths for stage in self.stages)):
            partitions = sum(count <= depths[-1] for count in self.mb3d)
            total += partitions * int(len(self.ratios) ** sum(depths))
        for stage in self.stages:
            total *= len(stage.widths)
        return total

    def _extreme(self, position: int) -> Arch:
        return self.decode(np.array([position % len(choice.values) for choice in self.choices]))

    @property
    def smallest(self) -> Arch:
        """Least width, depth, ratio and number of 3D blocks."""
        return self._extreme(0)

    @property
    def largest(self) -> Arch:
        """Most width, depth, ratio and number of 3D blocks."""
        return self._extreme(-1)

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """Slots by stage and place, such as `stage1.mb4d.0`; the last 3D block is `stage1.mb3d.0`."""
        names, stage, place = [], -1, 0
        trailing = sum(isinstance(spec, MB3D) for spec in arch.blocks)
        for spec in arch.blocks:
            if isinstance(spec, Stem | Embed):
                stage, place = stage + 1, 0
                names.append(f"stage{stage}.{spec.kind}")
            elif isinstance(spec, MB4D):
                names.append(f"stage{stage}.mb4d.{place}")
                place += 1
            elif isinstance(spec, MB3D):
                trailing -= 1
                names.append(f"stage{stage}.mb3d.{trailing}")
            else:
                names.append("head")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[BlockSpec, State]]:
        """The largest block of every slot, read off the networks with everything at its most and either kind of last stage."""
        largest = self.shape(self.largest)
        ratio = max(self.ratios)
        only_4d = self.arch(Shape(largest.widths, tuple((ratio,) * depth for depth in self.depths), ()))
        only_3d = self.arch(
            Shape(largest.widths, (*((ratio,) * d for d in self.depths[:-1]), ()), (ratio,) * max(self.mb3d))
        )
        return {
            slot: step for arch in (only_4d, only_3d) for slot, step in zip(self.slots(arch), arch.steps(), strict=True)
        }

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all pairs of neighbouring widths, with each ratio and either kind of last block."""
        return tuple(sorted({row for arch in self.probes() for row in arch.rows}))

    def probes(self) -> tuple[Arch, ...]:
        """Short networks for every pair of widths, and chains of equal blocks for every width and ratio of every stage."""
        return tuple(dict.fromkeys(self.arch(shape) for shape in self._probe_shapes()))

    def _probe_shapes(self) -> Iterator[Shape]:
        last, low = len(self.stages) - 1, self.ratios[0]
        middle = [stage.widths[len(stage.widths) // 2] for stage in self.stages]
        for s, stage in enumerate(self.stages):
            for width, ratio in product(stage.widths, self.ratios):
                widths = tuple(width if t == s else other for t, other in enumerate(middle))
                chain = tuple((ratio,) * CHAIN if t == s else (low,) for t in range(last + 1))
                yield Shape(widths, chain, (low,))
                if s == last:
                    yield Shape(widths, tuple((low,) for _ in self.stages), (ratio,) * CHAIN)
        for s in range(1, last + 1):
            for pair in product(self.stages[s - 1].widths, self.stages[s].widths):
                widths = (*middle[: s - 1], *pair, *middle[s + 1 :])
                yield Shape(widths, tuple((low,) for _ in self.stages), (low,))
        for width in self.stages[last].widths:
            widths = (*middle[:-1], width)
            yield Shape(widths, (*((low,) for _ in self.stages[:-1]), ()), (low, low))
            yield Shape(widths, tuple((low, low) for _ in self.stages), ())


def hybrid_digits(classes: int = 10) -> Hybrid:
    """64 pixels, two stages of 16x16 and 8x8 places; small enough to search on two CPU cores in minutes."""
    return Hybrid(
        "hybrid_digits",
        image_size=64,
        stages=(Stage((12, 16, 20, 24), (1, 2)), Stage((24, 32, 40, 48), (1, 2, 3))),
        mb3d=(0, 1, 2, 3),
        ratios=(1, 2, 3),
        block=MB3D(heads=4, key_dim=16, value_dim=32, layer_scale=0.1),
        classes=classes,
    )
