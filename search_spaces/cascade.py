"""`Cascade`: ViTs from coarse to fine, each with an exit, the later ones reusing what those before know (DVT, arXiv 2105.15075)."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.arch import SCHEMA, Arch, Network, Step
from search_spaces.blocks import MB3D, BlockSpec, Reuse, TokenPrune
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.reuse import REUSES, Layer, Passed, Reused, ReuseModule
from search_spaces.errors import InputError
from search_spaces.resize import Resize
from search_spaces.states import State, Tokens
from search_spaces.tokens import Chosen

__all__ = ["Cascade", "CascadeNetwork", "linked"]


class CascadeNetwork(Network):
    """The stages of a `Cascade`: images (B, channels, H, W) -> a list of logits (B, classes), one of each exit."""

    arch: "Cascade"

    def __init__(self, arch: "Cascade") -> None:
        super().__init__(arch)
        ends = [0]
        for stage in arch.stages:
            ends.append(ends[-1] + len(stage.blocks))
        self.parts = [range(start, end) for start, end in itertools.pairwise(ends)]
        sizes = [stage.image_size for stage in arch.stages]
        self.resizes = nn.ModuleList(
            nn.Identity() if size == arch.image_size else Resize(arch.image_size, size) for size in sizes
        )

    def forward(self, x: Tensor, trace: list[Chosen] | None = None) -> list[Tensor]:  # type: ignore[override]  # of every exit
        """Logits of all exits, coarse to fine, and behind them what a `told` cascade tells; no stage prunes, so there is nothing to `trace`."""
        found: list[Tensor] = []
        passed: Passed | None = None
        for number in range(len(self.parts)):
            logits, passed = self.exit(number, x, passed)
            found.append(logits)
        assert passed is not None
        return found if passed.relations is None else [*found, passed.relations]

    def exit(self, number: int, x: Tensor, passed: Passed | None = None) -> tuple[Tensor, Passed]:
        """Logits (B, classes) of one exit, and what its stage passes on.

        Args:
            number: of the exit, from 0.
            x: images (B, channels, H, W), of the cascade's size.
            passed: what the stage before passed of these images; None for the first.
        """
        stages = self.arch.stages
        told: list[Tensor] | None = [] if self.arch.asks(number) else None
        reused: Reused | None = None
        sharing: ReuseModule | None = None  # the block that holds what the stage's blocks share of it
        mapped = 0  # of the maps, those that blocks took
        state = tokens = self.resizes[number](x)
        for spec, position in zip(stages[number].blocks, self.parts[number], strict=True):
            block = self.blocks[position]
            if isinstance(block, ReuseModule):
                assert passed is not None, "a later stage needs what the stage before passed"
                reused, sharing = block(passed), block
            elif isinstance(block, MB3DModule):
                assert isinstance(spec, MB3D)
                state = tokens = block(state, layer=_layer(spec, mapped, reused, sharing, told))
                mapped += spec.heads if "relations" in spec.reuse else 0
            else:
                state = block(state)
        return state, Passed(
            tokens if self.arch.asked_for(number) else None, None if told is None else torch.cat(told, 1)
        )


def _layer(
    spec: MB3D, mapped: int, reused: Reused | None, sharing: ReuseModule | None, told: list[Tensor] | None
) -> Layer | None:
    """What one block gets; None for a block by itself, which then runs as in any network. Maps are spread one block at a time, in cache."""
    if not spec.reuse and told is None:
        return None
    if not spec.reuse or reused is None or sharing is None:
        return Layer(told=told)
    added = None
    if "relations" in spec.reuse:
        assert reused.relations is not None and sharing.pairs is not None
        added = sharing.pairs(reused.relations[:, mapped : mapped + spec.heads])
    features = reused.features if "features" in spec.reuse else None
    return Layer(features, sharing.tokens, added, told)


def reuse_of(stage: Arch) -> Reuse | None:
    """What a stage says of the one before it; None where it reuses nothing."""
    return next((spec for spec in stage.blocks if isinstance(spec, Reuse)), None)


def unfit(stage: Arch) -> str | None:
    """Why a network is no stage of a cascade, to stand behind its name; None where it can be one."""
    if stage.encoder:
        return "is an encoder, and every exit needs a classifier; give it one"
    found = [spec for spec in stage.blocks if isinstance(spec, MB3D)]
    if not found:
        return "has no transformer blocks (mb3d), which a stage of a cascade is made of; give a ViT"
    if any(isinstance(spec, TokenPrune) for spec in stage.blocks):
        return "prunes tokens, which the next could not reuse; give it without that"
    if any(spec.bias or spec.groups or spec.loops > 1 for spec in found):
        return "is no plain ViT: it has a position bias, groups or loops; give a ViT"
    if len({(state.grid, state.prefix, state.channels) for state in _behind(stage)}) > 1:
        return "has transformer blocks on several grids or of several widths; give a ViT"
    return None


def _behind(stage: Arch) -> list[Tokens]:
    """The tokens behind each transformer block."""
    after = zip(stage.blocks, stage.states[1:], strict=True)
    return [state for spec, state in after if isinstance(spec, MB3D) and isinstance(state, Tokens)]


def _passes(stage: Arch) -> tuple[Tokens, int]:
    """The tokens behind a stage's last transformer block, and how many attention maps its blocks have."""
    return _behind(stage)[-1], sum(spec.heads for spec in stage.blocks if isinstance(spec, MB3D))


def _mapped(stage: Arch) -> int:
    """Attention maps of a stage's blocks that reuse relations."""
    return sum(spec.heads for spec in stage.blocks if isinstance(spec, MB3D) and "relations" in spec.reuse)


@dataclass(frozen=True)
class Cascade(Arch):
    """ViTs from coarse to fine over the same classes; images go through all stages, or leave at an exit.

    As an `Arch`, its blocks are those of all stages, one after the other, and its image size that of the largest; stages of smaller images
    resize what they get. A stage whose blocks `reuse` has a `Reuse` block that says of the stage before what there is.

    `told`: it is the beginning of a longer cascade, of one stage or more, whose last one tells its relations to nobody; see `until`.

    Raises:
        ValueError: on construction, where stages are fewer than two or do not fit each other.
    """

    image_size: int = field(init=False, repr=False, compare=False)
    channels: int = field(init=False, repr=False, compare=False)
    blocks: tuple[BlockSpec, ...] = field(init=False, repr=False, compare=False)
    states: tuple[State, ...] = field(init=False, repr=False, compare=False)
    stages: tuple[Arch, ...]
    told: bool = False

    def __post_init__(self) -> None:
        """Check that stages fit, and lay their blocks out in a row."""
        if len(self.stages) < 2 - self.told or any(isinstance(stage, Cascade) for stage in self.stages):
            raise ValueError(f"a cascade has two stages or more, each of one exit; got {len(self.stages)}")
        for number, stage in enumerate(self.stages):
            fault = unfit(stage)
            if fault is not None:
                raise ValueError(f"stage {number + 1} {fault}")
        for what in ("channels", "classes"):
            found = {getattr(stage, what) for stage in self.stages}
            if len(found) > 1:
                raise ValueError(f"stages of a cascade have the same {what}, got {sorted(found)}")
        for number, stage in enumerate(self.stages):
            self._check(number, stage)
        states = [state for number in range(len(self.stages)) for state in self._states(number)]
        object.__setattr__(self, "image_size", max(stage.image_size for stage in self.stages))
        object.__setattr__(self, "channels", self.stages[0].channels)
        object.__setattr__(self, "blocks", tuple(spec for stage in self.stages for spec in stage.blocks))
        object.__setattr__(self, "states", (*states, self.stages[-1].states[-1]))

    def _check(self, number: int, stage: Arch) -> None:
        """Refuse what a stage says of the one before where it is not so."""
        reuse = reuse_of(stage)
        if reuse is None:
            return
        if not number:
            raise ValueError("the first stage of a cascade has none before it to reuse")
        before, maps = _passes(self.stages[number - 1])
        if (reuse.channels, reuse.side, reuse.prefix) != (before.channels, before.grid, before.prefix):
            raise ValueError(f"stage {number + 1} reuses {reuse}, but the stage before ends in {before}")
        if reuse.maps and reuse.maps != (maps, _mapped(stage)):
            wanted = (maps, _mapped(stage))
            raise ValueError(f"stage {number + 1} reuses maps {reuse.maps}, but there are {wanted} before and in it")

    def asked_for(self, number: int) -> bool:
        """Whether the next stage makes features of the last tokens of the stage `number`."""
        following = reuse_of(self.stages[number + 1]) if number + 1 < len(self.stages) else None
        return following is not None and following.width > 0

    def asks(self, number: int) -> bool:
        """Whether relations of the stage `number` are asked for, which then writes the logits of its attention out."""
        if number == len(self.stages) - 1:
            return self.told
        following = reuse_of(self.stages[number + 1])
        return following is not None and bool(following.maps)

    def _states(self, number: int) -> list[State]:
        """Before each block of a stage; those of its attention say whether logits are asked for, which takes time."""
        asks = self.asks(number)
        return [
            dataclasses.replace(state, asked=True)
            if asks and isinstance(spec, MB3D) and isinstance(state, Tokens)
            else state
            for spec, state in self.stages[number].steps()
        ]

    def until(self, number: int, depth: int | None = None) -> Arch:
        """What an image that leaves at an exit runs through: the stages as far as there, the last of which tells what the next asks of it.

        Its images have the largest size of these stages, which may be smaller than the cascade's.

        Args:
            number: of the exit, from 0.
            depth: transformer blocks of its stage, the first ones of it, and where it has fewer those over again; by default its own.

        Raises:
            ValueError: so few blocks do not reuse what its `Reuse` block is for.
        """
        *before, stage = self.stages[: number + 1]
        stage = stage if depth is None else _of_depth(stage, depth)
        stage = _told_of(stage, before[-1]) if before else stage
        told = self.asks(number)
        return Cascade((*before, stage), told) if before or told else stage

    def with_classes(self, classes: int) -> "Cascade":
        return dataclasses.replace(self, stages=tuple(stage.with_classes(classes) for stage in self.stages))

    def at(self, image_size: int) -> "Cascade":
        """The same cascade for images of another size: a stage of smaller images keeps its share of the largest's side.

        Raises:
            ValueError: a block cannot run on what it gets there.
        """
        found: list[Arch] = []
        for stage in self.stages:
            sized = stage.at(max(1, round(stage.image_size * image_size / self.image_size)))
            found.append(_told_of(sized, found[-1]) if found else sized)
        return dataclasses.replace(self, stages=tuple(found))

    def with_loops(self, loops: int) -> "Cascade":
        return dataclasses.replace(self, stages=tuple(stage.with_loops(loops) for stage in self.stages))

    def keeping(self, keeps: Sequence[int] | None = None, adaptive: bool | None = None) -> "Cascade":
        """The cascade itself, which prunes no tokens."""
        return self

    def build(self) -> CascadeNetwork:
        return CascadeNetwork(self)

    def schedule(self) -> tuple[Step, ...]:
        return tuple(Step(position, None, False) for position in range(len(self.blocks)))

    def _value(self) -> dict[str, Any]:
        told = {"told": True} if self.told else {}
        return {"schema": SCHEMA, "kind": "cascade", "stages": [stage._value() for stage in self.stages], **told}

    @staticmethod
    def _of(value: Any) -> "Cascade":
        if value.get("schema") != SCHEMA:
            raise InputError(f"cascade schema {value.get('schema')!r} is not {SCHEMA}; use the version that wrote it")
        if not isinstance(value.get("stages"), list):
            raise InputError("not a cascade: stages must be a list of architectures")
        told = value.get("told", False)
        if not isinstance(told, bool):
            raise InputError(f"not a cascade: told must be true or false, got {told!r}")
        stages = tuple(Arch._of(stage) for stage in value["stages"])
        try:
            return Cascade(stages, told)
        except ValueError as error:
            raise InputError(f"not a cascade: {error}") from error


def _of_depth(stage: Arch, depth: int) -> Arch:
    """The stage with so many transformer blocks, from the first one on and round again."""
    own = [spec for spec in stage.blocks if isinstance(spec, MB3D)]
    first = stage.blocks.index(own[0])
    behind = [spec for spec in stage.blocks[first:] if not isinstance(spec, MB3D)]
    blocks = [own[number % len(own)] for number in range(depth)]
    return dataclasses.replace(stage, blocks=(*stage.blocks[:first], *blocks, *behind))


def _told_of(stage: Arch, before: Arch) -> Arch:
    """The stage with its `Reuse` block, if it has one, saying of `before` what there is."""
    tokens, maps = _passes(before)

    def told(spec: BlockSpec) -> BlockSpec:
        if not isinstance(spec, Reuse):
            return spec
        own = (maps, _mapped(stage)) if spec.maps else ()
        return dataclasses.replace(spec, channels=tokens.channels, grid=tokens.grid, prefix=tokens.prefix, maps=own)

    return dataclasses.replace(stage, blocks=tuple(told(spec) for spec in stage.blocks))


def linked(stages: Sequence[Arch], *, features: bool = True, relations: bool = True, joint: bool = True) -> Cascade:
    """A cascade of ViTs that were made apart, whose later stages reuse what the one before knows.

    Args:
        stages: from coarse to fine.
        features: whether they reuse its features.
        relations: whether they reuse its relations.
        joint: whether the MLP's norm is over what is reused too, see `Reuse`.

    Raises:
        ValueError: the stages do not fit each other, or a block cannot reuse.
    """
    wanted = tuple(one for one, on in zip(REUSES, (features, relations), strict=True) if on)
    found = list(stages[:1])
    for stage in stages[1:]:
        found.append(_reusing(stage, found[-1], wanted, joint) if wanted else stage)
    return Cascade(tuple(found))


def _reusing(stage: Arch, before: Arch, wanted: tuple[str, ...], joint: bool) -> Arch:
    """The stage with a `Reuse` block of what is wanted before its first transformer block, all of which reuse it."""
    tokens, maps = _passes(before)
    _, own = _passes(stage)
    first = next(position for position, spec in enumerate(stage.blocks) if isinstance(spec, MB3D))
    reuse = Reuse(tokens.channels, tokens.grid, tokens.prefix, joint=joint)
    reuse = dataclasses.replace(reuse, maps=(maps, own)) if "relations" in wanted else reuse
    reuse = reuse if "features" in wanted else dataclasses.replace(reuse, width=0)
    blocks = [dataclasses.replace(spec, reuse=wanted) if isinstance(spec, MB3D) else spec for spec in stage.blocks]
    return dataclasses.replace(stage, blocks=(*blocks[:first], reuse, *blocks[first:]))
