"""The hybrid space: MB4D blocks up to a partition point, MB3D blocks after it, and what each kind of block may be."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, BlockSpec, Embed, Head, Stem, TokenPrune
from search_spaces.factors import Factor
from search_spaces.space import Choice, Code, Space, by_size
from search_spaces.spaces.hybrid_parts import Part, Stage, network_of, parts_of, share_of
from search_spaces.spaces.thresholded import with_thresholds
from search_spaces.states import Map, State, Tokens

__all__ = ["Hybrid", "Part", "Stage"]


class Hybrid(Space):
    """Stages of MB4D blocks whose trailing blocks are MB3D (EfficientFormer, arXiv 2206.01191; SReT, 2111.05297; AS-ViT, 2209.13802).

    The partition point may lie in any stage that has a 3D block; from there on all blocks are 3D. Ratios are chosen for
    each block; mixer, residual form, loops, projection, groups and orders for each stage; patches are dropped in the last
    stage, because what follows needs them all; the image's resolution for the network.

    Weights: a 4D block takes the slot of its place in the stage; 3D slots are aligned from the stage's end, so that the
    last block of every network is the same one. Widths and FFN ratios take leading channels, loops the first projections.
    """

    def __init__(
        self,
        name: str,
        image_size: int | tuple[int, ...],
        stages: tuple[Stage, ...],
        mb3d: tuple[int, ...],
        ratios: tuple[float, ...],
        layer_scale: float,
        classes: int,
        distilled: bool = False,
    ) -> None:
        """Set the choices; `image_size` lists the resolutions, `mb3d` how many trailing blocks of a network may be 3D.

        `distilled`: every head has the second classifier of a network that was distilled, see `Head`.

        Raises:
            ValueError: a stage other than the last may be empty, or two shares of a stage keep equally many patches.
        """
        self.name, self.classes, self.head = name, classes, Head(classes, distilled)
        self.sizes = (image_size,) if isinstance(image_size, int) else image_size
        self.stages, self.mb3d, self.ratios, self.layer_scale = stages, mb3d, ratios, layer_scale
        self.depths = [max(stage.depths) for stage in stages]
        if any(0 in stage.depths for stage in stages[:-1]):
            raise ValueError("only the last stage may have a depth of 0")
        for s, size in product(range(len(stages)), self.sizes):
            if len({self.kept(s, size, share) for share in stages[s].keeps}) < len(stages[s].keeps):
                raise ValueError(
                    f"two of the shares {stages[s].keeps} keep equally many of {self.tokens(s, size)} patches"
                )
        choices = [by_size("resolution", self.sizes)]
        choices += [by_size(f"width{s}", stage.widths) for s, stage in enumerate(stages)]
        choices += [by_size(f"depth{s}", stage.depths) for s, stage in enumerate(stages)]
        choices.append(Choice("mb3d", mb3d))
        for s, stage in enumerate(stages):
            choices.append(Choice(f"mixer{s}", stage.mixers))
            choices += [Choice(f"ratio{s}.mb4d.{i}", ratios) for i in range(self.depths[s])]
            choices += self._choices_3d(s, stage) if stage.block else []
        choices += [by_size(f"value{s}", stage.values) for s, stage in enumerate(stages) if len(stage.values) > 1]
        self.choices = tuple(choices)

    def _choices_3d(self, s: int, stage: Stage) -> list[Choice]:
        choices = [Choice(f"ratio{s}.mb3d.{i}", self.ratios) for i in range(min(self.depths[s], max(self.mb3d)))]
        choices += [
            Choice(f"residual{s}", stage.residuals),
            Choice(f"loops{s}", stage.loops),
            Choice(f"nll{s}", stage.nll),
            Choice(f"recursion{s}", stage.recursions, most=0),
        ]
        for loop in range(max(stage.loops)):
            choices.append(Choice(f"groups{s}.{loop}", stage.groups, len(stage.groups) - 1, 0))  # one group costs most
            choices.append(Choice(f"order{s}.{loop}", stage.orders))
        choices.append(Choice(f"inverse{s}", stage.inverses))
        return choices + [by_size(f"keep{s}.{i}", stage.keeps) for i in stage.locations]

    def tokens(self, s: int, image_size: int) -> int:
        """Places on the grid of a stage."""
        return int((-(-image_size // 2 ** (s + 2))) ** 2)

    def kept(self, s: int, image_size: int, share: float) -> int:
        """How many patches of a stage a share of them is; at least one."""
        return share_of(self.tokens(s, image_size), share)

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

    def fitting(self, depths: Sequence[int], which: int) -> int:
        """Which of the counts of 3D blocks a network of these depths takes where it cannot have the one asked for."""
        fitting = [i for i, count in enumerate(self.mb3d) if count <= self.room(depths)]
        return max((i for i in fitting if i <= which), default=fitting[0])

    def dividing(self, s: int, tokens: int, wanted: int) -> int:
        """Which of a stage's groups divide its tokens, at most as many as wanted."""
        allowed = [i for i, groups in enumerate(self.stages[s].groups) if tokens % groups == 0]
        return max((i for i in allowed if self.stages[s].groups[i] <= wanted), default=allowed[0])

    def repair(self, code: Code) -> Code:
        """Cut the 3D count to what there is room for, groups to what divides the tokens, and set inactive positions to 0.

        A pruning location that would keep no fewer patches than the one before it keeps all.
        """
        given = self._clipped(code)
        depths = [self._count(given, f"depth{s}") for s in range(len(self.stages))]
        given[self._at["mb3d"]] = self.fitting(depths, int(given[self._at["mb3d"]]))
        tails = self.trailing(depths, self._count(given, "mb3d"))
        active = {"mb3d", "resolution", *(f"depth{s}" for s in range(len(depths)))}
        for s, (depth, tail) in enumerate(zip(depths, tails, strict=True)):
            active |= {f"width{s}"} if depth else set()
            active |= {f"ratio{s}.mb4d.{i}" for i in range(depth - tail)} | {f"ratio{s}.mb3d.{i}" for i in range(tail)}
            active |= {f"mixer{s}"} if depth > tail else set()
            active |= self._active_3d(given, s, tail) if tail else set()
            active |= self._active_keeps(given, s, tail) if not any(depths[s + 1 :]) else set()
        inactive = [position for name, position in self._at.items() if name not in active]
        given[inactive] = 0
        return given

    def _active_3d(self, given: Code, s: int, tail: int) -> set[str]:
        """Positions that matter in a stage with 3D blocks; groups that do not divide the tokens become fewer."""
        active = {f"residual{s}", f"loops{s}", f"nll{s}"} | ({f"value{s}"} & self._at.keys())
        active |= {f"recursion{s}"} if self._count(given, f"loops{s}") > 1 and tail > 1 else set()
        tokens = self.tokens(s, self._count(given, "resolution"))
        for loop in range(self._count(given, f"loops{s}")):
            name = f"groups{s}.{loop}"
            given[self._at[name]] = self.dividing(s, tokens, self._count(given, name))
            active.add(name)
            if self._count(given, name) > 1:
                active.add(f"order{s}.{loop}")
                active |= {f"inverse{s}"} if self._value(given, f"order{s}.{loop}") != "contiguous" else set()
        return active

    def _active_keeps(self, given: Code, s: int, tail: int) -> set[str]:
        """The pruning locations of the last stage, each with a block before it that scores; none inside an external loop."""
        if tail > 1 and self._count(given, f"loops{s}") > 1 and self._value(given, f"recursion{s}") == "external":
            return set()
        active, least = set[str](), 1.0
        for i in sorted((i for i in self.stages[s].locations if i < tail - 1), reverse=True):
            name, share = f"keep{s}.{i}", float(self._value(given, f"keep{s}.{i}"))
            if share < least:
                least = share
            else:
                given[self._at[name]] = self.choices[self._at[name]].values.index(1)
            active.add(name)
        return active

    def _build(self, code: Code) -> Arch:
        size = self._count(code, "resolution")
        depths = [self._count(code, f"depth{s}") for s in range(len(self.stages))]
        parts = []
        for s, tail in enumerate(self.trailing(depths, self._count(code, "mb3d"))):
            if depths[s]:
                mb4d = tuple(float(self._value(code, f"ratio{s}.mb4d.{i}")) for i in range(depths[s] - tail))
                mb3d = tuple(float(self._value(code, f"ratio{s}.mb3d.{i}")) for i in reversed(range(tail)))
                block = self._block(code, s, tail) if tail else None
                keeps = self._keeps(code, s, tail, size) if not any(depths[s + 1 :]) else ()
                width, mixer = self._count(code, f"width{s}"), str(self._value(code, f"mixer{s}"))
                parts.append(Part(width, mb4d, mb3d, mixer, block, keeps))
        return self.arch(parts, size)

    def _keeps(self, code: Code, s: int, tail: int, size: int) -> tuple[int, ...]:
        """Before each 3D block of the stage, how many patches stay, 0 for all; the code is canonical."""
        if tail > 1 and self._value(code, f"recursion{s}") == "external":
            return ()
        shares = {i: float(self._value(code, f"keep{s}.{i}")) for i in self.stages[s].locations if i < tail - 1}
        kept = tuple(self.kept(s, size, shares[i]) if shares.get(i, 1) < 1 else 0 for i in reversed(range(tail)))
        return kept if any(kept) else ()

    def _block(self, code: Code, s: int, tail: int) -> MB3D:
        loops = self._count(code, f"loops{s}")
        groups = tuple(self._count(code, f"groups{s}.{loop}") for loop in range(loops))
        orders = tuple(
            str(self._value(code, f"order{s}.{loop}")) if groups[loop] > 1 else "contiguous" for loop in range(loops)
        )
        cut = max(groups) > 1
        plain = self.plain(s)
        return replace(
            plain,
            value_dim=self._count(code, f"value{s}") if f"value{s}" in self._at else plain.value_dim,
            residual=str(self._value(code, f"residual{s}")),
            loops=loops,
            nll=float(self._value(code, f"nll{s}")),
            groups=groups if cut else (),
            orders=orders if cut else (),
            recursion=str(self._value(code, f"recursion{s}")),
            inverse=bool(self._count(code, f"inverse{s}")) if set(orders) != {"contiguous"} else True,
        )

    def plain(self, s: int) -> MB3D:
        """The 3D block of a stage without loops, projection and groups."""
        block = self.stages[s].block
        assert block is not None, "a stage without 3D blocks"
        values, residual = self.stages[s].values or (block.value_dim,), self.stages[s].residuals[0]
        return replace(block, value_dim=values[0], layer_scale=self.layer_scale, residual=residual)

    def arch(self, parts: Sequence[Part], image_size: int | None = None) -> Arch:
        """The network of parts, one a stage, whose widths and counts need not be among the choices; of the largest image size unless told."""
        plain = [self.plain(s) if stage.block else None for s, stage in enumerate(self.stages)]
        return network_of(parts, plain, image_size or max(self.sizes), self.layer_scale, self.head)

    def parts(self, arch: Arch) -> list[Part]:
        """The parts that `arch` was made of."""
        return parts_of(arch)

    def _read(self, arch: Arch) -> Code | None:
        parts = parts_of(arch)
        if not len(self.stages) - 1 <= len(parts) <= len(self.stages):
            return None
        values: dict[str, float | str] = {"mb3d": sum(len(part.mb3d) for part in parts), "resolution": arch.image_size}
        values |= {f"depth{s}": 0 for s in range(len(parts), len(self.stages))}
        for s, part in enumerate(parts):
            values |= {f"width{s}": part.width, f"depth{s}": len(part.mb4d) + len(part.mb3d)}
            values |= {f"mixer{s}": part.mixer} if part.mb4d else {}
            values |= {f"ratio{s}.mb4d.{i}": ratio for i, ratio in enumerate(part.mb4d)}
            values |= {f"ratio{s}.mb3d.{i}": ratio for i, ratio in enumerate(reversed(part.mb3d))}
            values |= self._read_3d(s, part, arch.image_size) if part.block else {}
        return self._coded(values)

    def _read_3d(self, s: int, part: Part, image_size: int) -> dict[str, float | str]:
        assert part.block is not None
        block, values = part.block, dict[str, float | str]()
        values |= {f"residual{s}": block.residual, f"loops{s}": block.loops, f"nll{s}": block.nll}
        values |= {f"recursion{s}": block.recursion, f"inverse{s}": int(block.inverse)}
        values |= {f"value{s}": block.value_dim} if f"value{s}" in self._at else {}
        for loop, (groups, order) in enumerate(block.cuts):
            values |= {f"groups{s}.{loop}": groups} | ({f"order{s}.{loop}": order} if groups > 1 else {})
        shares = {self.kept(s, image_size, share): share for share in self.stages[s].keeps}
        values |= {f"keep{s}.{i}": 1 for i in self.stages[s].locations}
        for i, keep in enumerate(reversed(part.keeps)):
            values |= {f"keep{s}.{i}": shares.get(keep, -1)} if keep else {}
        return values

    @cached_property
    def size(self) -> int:
        """Number of different networks."""
        from search_spaces.spaces.hybrid_count import networks

        return networks(self)

    def slots(self, arch: Arch) -> tuple[str, ...]:
        """Slots by stage and place, such as `stage1.mb4d.0`; the last 3D block of a stage is `stage1.mb3d.0`."""
        names: list[str] = []
        tails = [len(part.mb3d) for part in parts_of(arch)]
        stage, place = -1, 0
        for spec, state in arch.steps():
            if isinstance(spec, Stem | Embed):
                stage, place = stage + 1, 0
                names.append(f"stage{stage}.{spec.kind}{'' if isinstance(state, Map) else '.tokens'}")
            elif isinstance(spec, MB4D):
                names.append(f"stage{stage}.mb4d.{place}")
                place += 1
            elif isinstance(spec, MB3D):
                tails[stage] -= 1
                names.append(f"stage{stage}.mb3d.{tails[stage]}")
            elif isinstance(spec, TokenPrune):
                names.append(f"stage{stage}.token_prune.{tails[stage]}")  # nothing is shared: it has no weights
            elif isinstance(spec, Head):
                names.append(f"head{stage}")  # features of another stage are others
            else:
                raise ValueError(f"{self.name} has no slot for a block of kind {spec.kind}")
        return tuple(names)

    @cached_property
    def bank(self) -> Mapping[str, tuple[tuple[BlockSpec, State], ...]]:
        """The largest blocks of every slot, read off networks of the largest widths and depths, of each form, resolution and partition point."""
        found: dict[str, dict[tuple[BlockSpec, State], None]] = {}
        mixers = dict.fromkeys(mixer for stage in self.stages for mixer in stage.mixers)
        forms = dict.fromkeys(form for stage in self.stages for form in stage.residuals)
        ends = [self.depths, [*self.depths[:-1], 0]] if 0 in self.stages[-1].depths else [self.depths]
        for size, mixer, form, depths in product(self.sizes, mixers, forms, ends):
            for count in range(min(self.room(depths), max(self.mb3d)) + 1):
                arch = self.arch(self._largest_parts(mixer, form, depths, count), size)
                for slot, (spec, state) in zip(self.slots(arch), arch.steps(), strict=True):
                    alike = replace(state, scored_by=None) if isinstance(state, Tokens) else state
                    found.setdefault(slot, {})[spec, alike] = None
        return {slot: tuple(steps) for slot, steps in found.items()}

    def _largest_parts(self, mixer: str, form: str, depths: Sequence[int], count: int) -> list[Part]:
        """The widest network of these depths that ends in `count` 3D blocks."""
        ratio, parts = max(self.ratios), []
        for stage, depth, tail in zip(self.stages, depths, self.trailing(depths, count), strict=True):
            used = mixer if mixer in stage.mixers else stage.mixers[0]
            residual = form if form in stage.residuals else stage.residuals[0]
            loops, nll = max(stage.loops), max(stage.nll)
            value = max(stage.values or (stage.block.value_dim,)) if stage.block else 0
            block = stage.block and replace(
                stage.block, value_dim=value, layer_scale=self.layer_scale, residual=residual, loops=loops, nll=nll
            )
            if depth:
                own = block if tail else None
                parts.append(Part(max(stage.widths), (ratio,) * (depth - tail), (ratio,) * tail, used, own))
        return parts

    @cached_property
    def terms(self) -> tuple[Factor, ...]:
        """Every stage's embedding, blocks and locations, and the head."""
        from search_spaces.spaces.hybrid_factors import terms

        return tuple(terms(self))

    def probes(self) -> tuple[Arch, ...]:
        """Short networks for every pair of widths, and chains of equal blocks for all that a block may be, at every resolution."""
        from search_spaces.spaces.hybrid_probes import probes

        archs = dict.fromkeys(self.arch(parts, size) for size in self.sizes for parts in probes(self, size))
        return tuple(archs) + with_thresholds(tuple(archs))
