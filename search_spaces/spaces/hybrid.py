"""The hybrid space: MB4D blocks up to a partition point, MB3D blocks after it, and what each kind of block may be like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, BlockSpec, Embed, Head, Row, Stem
from search_spaces.space import Choice, Code, Space
from search_spaces.states import State

__all__ = ["Hybrid", "Part", "Stage"]


@dataclass(frozen=True)
class Stage:
    """What one stage may be, each in ascending order."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mixers: tuple[str, ...] = ("pool",)  # of its 4D blocks
    block: MB3D | None = None  # heads of its 3D blocks; None where it has none
    residuals: tuple[str, ...] = ("layer_scale",)  # of its 3D blocks, as what follows
    loops: tuple[int, ...] = (1,)
    nll: tuple[float, ...] = (0,)
    groups: tuple[int, ...] = (1,)  # of each loop
    orders: tuple[str, ...] = ("contiguous",)


@dataclass(frozen=True)
class Part:
    """One stage of a network, spelled out: the FFN ratios of its 4D blocks and then of its 3D blocks, and what they are like."""

    width: int
    mb4d: tuple[float, ...]
    mb3d: tuple[float, ...] = ()
    mixer: str = "pool"
    block: MB3D | None = None  # of the 3D blocks, whatever its ratio; the stage's plain one unless told


class Hybrid(Space):
    """Stages of MB4D blocks whose trailing blocks are MB3D (EfficientFormer, arXiv 2206.01191; SReT, 2111.05297).

    The partition point may lie in any stage that has a 3D block; from there on all blocks are 3D. Ratios are chosen for
    each block; mixer, residual form, loops, projection, groups and orders for each stage.

    Weights: a 4D block takes the slot of its place in the stage; 3D slots are aligned from the stage's end, so that the
    last block of every network is the same one. Widths and FFN ratios take leading channels, loops the first projections.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        stages: tuple[Stage, ...],
        mb3d: tuple[int, ...],
        ratios: tuple[float, ...],
        layer_scale: float,
        classes: int,
    ) -> None:
        """Set the choices; `mb3d` lists how many trailing blocks of a network may be 3D."""
        self.name, self.image_size, self.classes = name, image_size, classes
        self.stages, self.mb3d, self.ratios, self.layer_scale = stages, mb3d, ratios, layer_scale
        self.depths = [max(stage.depths) for stage in stages]
        self.tokens = [-((-image_size // 2 ** (s + 2)) ** 2) for s in range(len(stages))]
        choices = [Choice(f"width{s}", stage.widths) for s, stage in enumerate(stages)]
        choices += [Choice(f"depth{s}", stage.depths) for s, stage in enumerate(stages)]
        choices.append(Choice("mb3d", mb3d))
        for s, stage in enumerate(stages):
            choices.append(Choice(f"mixer{s}", stage.mixers))
            choices += [Choice(f"ratio{s}.mb4d.{i}", ratios) for i in range(self.depths[s])]
            choices += self._choices_3d(s, stage) if stage.block else []
        self.choices = tuple(choices)
        self._at = {choice.name: position for position, choice in enumerate(choices)}

    def _choices_3d(self, s: int, stage: Stage) -> list[Choice]:
        choices = [Choice(f"ratio{s}.mb3d.{i}", self.ratios) for i in range(min(self.depths[s], max(self.mb3d)))]
        choices += [
            Choice(f"residual{s}", stage.residuals),
            Choice(f"loops{s}", stage.loops),
            Choice(f"nll{s}", stage.nll),
        ]
        for loop in range(max(stage.loops)):
            choices.append(Choice(f"groups{s}.{loop}", stage.groups, len(stage.groups) - 1, 0))  # one group costs most
            choices.append(Choice(f"order{s}.{loop}", stage.orders))
        return choices

    def _value(self, code: Code, name: str) -> float | str:
        position = self._at[name]
        return self.choices[position].values[int(code[position])]

    def _count(self, code: Code, name: str) -> int:
        return int(self._value(code, name))

    def trailing(self, depths: Sequence[int], count: int) -> list[int]:
        """How many 3D blocks each stage has when a network of these depths ends in `count` of them."""
        found = [0] * len(depths)
        for s in reversed(range(len(depths))):
            found[s] = min(depths[s], count) if self.stages[s].block else 0
            count -= found[s]
            if found[s] < depths[s]:
                break
        return found

    def room(self, depths: Sequence[int]) -> int:
        """The most 3D blocks that a network of these depths can end in."""
        return sum(self.trailing(depths, sum(depths)))

    def repair(self, code: Code) -> Code:
        """Cut the 3D count to what there is room for, groups to what divides the tokens, and set inactive positions to 0."""
        limits = np.array([len(choice.values) - 1 for choice in self.choices])
        given = np.clip(np.asarray(code, dtype=np.int64), 0, limits)
        depths = [self._count(given, f"depth{s}") for s in range(len(self.stages))]
        fitting = [i for i, count in enumerate(self.mb3d) if count <= self.room(depths)]
        given[self._at["mb3d"]] = max((i for i in fitting if i <= given[self._at["mb3d"]]), default=fitting[0])
        active = {"mb3d", *(f"{name}{s}" for s in range(len(depths)) for name in ("width", "depth"))}
        for s, (depth, tail) in enumerate(zip(depths, self.trailing(depths, self._count(given, "mb3d")), strict=True)):
            active |= {f"ratio{s}.mb4d.{i}" for i in range(depth - tail)} | {f"ratio{s}.mb3d.{i}" for i in range(tail)}
            active |= {f"mixer{s}"} if depth > tail else set()
            active |= self._active_3d(given, s) if tail else set()
        inactive = [position for name, position in self._at.items() if name not in active]
        given[inactive] = 0
        return given

    def _active_3d(self, given: Code, s: int) -> set[str]:
        """Positions that matter in a stage with 3D blocks; groups that do not divide the tokens become fewer."""
        active = {f"residual{s}", f"loops{s}", f"nll{s}"}
        for loop in range(self._count(given, f"loops{s}")):
            name = f"groups{s}.{loop}"
            wanted = self._count(given, name)
            choices = self.choices[self._at[name]].values
            allowed = [i for i, groups in enumerate(choices) if self.tokens[s] % int(groups) == 0]
            given[self._at[name]] = max((i for i in allowed if int(choices[i]) <= wanted), default=allowed[0])
            active.add(name)
            if self._count(given, name) > 1:
                active.add(f"order{s}.{loop}")
        return active

    def _build(self, code: Code) -> Arch:
        depths = [self._count(code, f"depth{s}") for s in range(len(self.stages))]
        parts = []
        for s, tail in enumerate(self.trailing(depths, self._count(code, "mb3d"))):
            mb4d = tuple(float(self._value(code, f"ratio{s}.mb4d.{i}")) for i in range(depths[s] - tail))
            mb3d = tuple(float(self._value(code, f"ratio{s}.mb3d.{i}")) for i in reversed(range(tail)))
            block = self._block(code, s) if tail else None
            parts.append(Part(self._count(code, f"width{s}"), mb4d, mb3d, str(self._value(code, f"mixer{s}")), block))
        return self.arch(parts)

    def _block(self, code: Code, s: int) -> MB3D:
        loops = self._count(code, f"loops{s}")
        groups = tuple(self._count(code, f"groups{s}.{loop}") for loop in range(loops))
        orders = tuple(
            str(self._value(code, f"order{s}.{loop}")) if groups[loop] > 1 else "contiguous" for loop in range(loops)
        )
        cut = max(groups) > 1
        return replace(
            self.plain(s),
            residual=str(self._value(code, f"residual{s}")),
            loops=loops,
            nll=float(self._value(code, f"nll{s}")),
            groups=groups if cut else (),
            orders=orders if cut else (),
        )

    def plain(self, s: int) -> MB3D:
        """The 3D block of a stage without loops, projection and groups."""
        block = self.stages[s].block
        assert block is not None, "a stage without 3D blocks"
        return replace(block, layer_scale=self.layer_scale, residual=self.stages[s].residuals[0])

    def arch(self, parts: Sequence[Part]) -> Arch:
        """The network of parts, one a stage, whose widths and counts need not be among the choices."""
        blocks: list[BlockSpec] = []
        for s, part in enumerate(parts):
            tokens = s > 0 and isinstance(blocks[-1], MB3D)
            blocks.append((Embed(part.width, "separable" if tokens else "full")) if s else Stem(part.width))
            blocks += [MB4D(ratio, self.layer_scale, part.mixer) for ratio in part.mb4d]
            if part.mb3d:
                blocks += [replace(part.block or self.plain(s), ratio=ratio) for ratio in part.mb3d]
        return Arch(self.image_size, 3, (*blocks, Head(self.classes)))

    @staticmethod
    def parts(arch: Arch) -> list[Part]:
        """The parts that `arch` was made of."""
        parts: list[Part] = []
        for spec in arch.blocks:
            if isinstance(spec, Stem | Embed):
                parts.append(Part(spec.width, ()))
            elif isinstance(spec, MB4D) and parts:
                parts[-1] = replace(parts[-1], mb4d=(*parts[-1].mb4d, spec.ratio), mixer=spec.mixer)
            elif isinstance(spec, MB3D) and parts:
                parts[-1] = replace(parts[-1], mb3d=(*parts[-1].mb3d, spec.ratio), block=spec)
        return parts

    def _read(self, arch: Arch) -> Code | None:
        parts = self.parts(arch)
        if len(parts) != len(self.stages):
            return None
        values: dict[str, float | str] = {"mb3d": sum(len(part.mb3d) for part in parts)}
        for s, part in enumerate(parts):
            values |= {f"width{s}": part.width, f"depth{s}": len(part.mb4d) + len(part.mb3d)}
            values |= {f"mixer{s}": part.mixer} if part.mb4d else {}
            values |= {f"ratio{s}.mb4d.{i}": ratio for i, ratio in enumerate(part.mb4d)}
            values |= {f"ratio{s}.mb3d.{i}": ratio for i, ratio in enumerate(reversed(part.mb3d))}
            if part.block:
                values |= {
                    f"residual{s}": part.block.residual,
                    f"loops{s}": part.block.loops,
                    f"nll{s}": part.block.nll,
                }
                for loop, (groups, order) in enumerate(part.block.cuts):
                    values |= {f"groups{s}.{loop}": groups} | ({f"order{s}.{loop}": order} if groups > 1 else {})
        code = np.zeros(len(self.choices), dtype=np.int64)
        for name, value in values.items():
            position = self._at.get(name)
            if position is None or value not in self.choices[position].values:
                return None
            code[position] = self.choices[position].values.index(value)
        return code

    @cached_property
    def size(self) -> int:
        """Number of different networks: widths times, for every depth and partition point, what the blocks may be."""
        total = 0
        for depths in product(*(stage.depths for stage in self.stages)):
            for count in self.mb3d:
                if count <= self.room(depths):
                    tails = self.trailing(depths, count)
                    kinds = [
                        self._kinds(s, depth - tail, tail)
                        for s, (depth, tail) in enumerate(zip(depths, tails, strict=True))
                    ]
                    total += int(np.prod(np.array(kinds, dtype=object)))
        return total * int(np.prod([len(stage.widths) for stage in self.stages]))

    def _kinds(self, s: int, mb4d: int, mb3d: int) -> int:
        """In how many ways the blocks of a stage can be."""
        stage, ways = self.stages[s], int(len(self.ratios) ** (mb4d + mb3d))
        ways *= len(stage.mixers) if mb4d else 1
        cuts = sum(len(stage.orders) if groups > 1 else 1 for groups in stage.groups if self.tokens[s] % groups == 0)
        return ways * (len(stage.residuals) * len(stage.nll) * sum(cuts**loops for loops in stage.loops) if mb3d else 1)

    @property
    def smallest(self) -> Arch:
        """Least width, depth, ratio and number of 3D blocks."""
        return self.decode(np.array([choice.least for choice in self.choices]))

    @property
    def largest(self) -> Arch:
        """Most width, depth, ratio, loops and number of 3D blocks, each in one group."""
        return self.decode(np.array([choice.top for choice in self.choices]))

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """Slots by stage and place, such as `stage1.mb4d.0`; the last 3D block of a stage is `stage1.mb3d.0`."""
        names: list[str] = []
        tails = [len(part.mb3d) for part in self.parts(arch)]
        stage, place = -1, 0
        for spec, state in arch.steps():
            if isinstance(spec, Stem | Embed):
                stage, place = stage + 1, 0
                names.append(f"stage{stage}.{spec.kind}{'' if hasattr(state, 'height') else '.tokens'}")
            elif isinstance(spec, MB4D):
                names.append(f"stage{stage}.mb4d.{place}")
                place += 1
            elif isinstance(spec, MB3D):
                tails[stage] -= 1
                names.append(f"stage{stage}.mb3d.{tails[stage]}")
            elif isinstance(spec, Head):
                names.append("head")
            else:
                raise ValueError(f"{self.name} has no slot for a block of kind {spec.kind}")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """The largest blocks of every slot, read off networks of the largest widths and depths, of each form and partition point."""
        ratio, found = max(self.ratios), dict[str, dict[tuple[BlockSpec, State], None]]()
        mixers = dict.fromkeys(mixer for stage in self.stages for mixer in stage.mixers)
        forms = dict.fromkeys(form for stage in self.stages for form in stage.residuals)
        counts = range(min(self.room(self.depths), max(self.mb3d)) + 1)
        for mixer, form, count in product(mixers, forms, counts):
            parts = []
            for s, tail in enumerate(self.trailing(self.depths, count)):
                stage = self.stages[s]
                used = mixer if mixer in stage.mixers else stage.mixers[0]
                residual = form if form in stage.residuals else stage.residuals[0]
                loops, nll = max(stage.loops), max(stage.nll)
                block = replace(self.plain(s), residual=residual, loops=loops, nll=nll) if tail else None
                parts.append(Part(max(stage.widths), (ratio,) * (self.depths[s] - tail), (ratio,) * tail, used, block))
            arch = self.arch(parts)
            for slot, step in zip(self.slots(arch), arch.steps(), strict=True):
                found.setdefault(slot, {})[step] = None
        return {slot: tuple(steps) for slot, steps in found.items()}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all pairs of neighbouring widths, with everything that a block may be."""
        return tuple(sorted({row for arch in self.probes() for row in arch.rows}))

    def probes(self) -> tuple[Arch, ...]:
        """Short networks for every pair of widths, and chains of equal blocks for all that a block may be."""
        from search_spaces.spaces.hybrid_probes import probes

        return tuple(dict.fromkeys(self.arch(parts) for parts in probes(self)))
