"""`Arch`: an immutable description of a network, the only thing that travels between the parts of the framework."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, get_args, get_origin

import torch
from torch import Tensor, nn

from search_spaces.blocks import BLOCKS, BlockSpec, Head, Reuse, Row, TokenPrune
from search_spaces.blocks.streams import Pair
from search_spaces.errors import InputError
from search_spaces.states import Logits, Map, State, Tokens
from search_spaces.tokens import Chosen, Kept

__all__ = ["SCHEMA", "Arch", "Network"]

SCHEMA = 1  # version of the JSON form
AT_ONCE = 8
"""Images that go through a network with thresholds together on a CPU: what larger packs write out does not stay in its caches."""


class Step(NamedTuple):
    """One application of a block: which, which of its loops (None: all of them), and what it tells of the patches."""

    position: int
    loop: int | None
    scored: bool  # by which they are kept
    keyed: bool = False  # or their keys, by which they are merged


class Network(nn.Module):
    """The blocks of an `Arch`, in the order of its steps: images (B, channels, H, W) -> logits (B, classes)."""

    def __init__(self, arch: "Arch") -> None:
        super().__init__()
        self.arch = arch
        self.blocks = nn.ModuleList(spec.build(state) for spec, state in arch.steps())
        self.schedule = arch.schedule()
        self.adaptive = any(spec.adaptive for spec in arch.blocks if isinstance(spec, TokenPrune))

    def forward(self, x: Tensor, trace: list[Chosen] | None = None) -> Tensor:
        """Logits; to `trace` is added what each pruning location chose."""
        if self.adaptive and not self.training and x.device.type == "cpu" and len(x) > AT_ONCE:
            return self._in_parts(x, trace)
        return self._run(x, trace)

    def _in_parts(self, x: Tensor, trace: list[Chosen] | None) -> Tensor:
        """The same, a few images after the others; each gets what it gets alone, so it makes no difference."""
        parts = x.tensor_split(-(-len(x) // AT_ONCE))
        traces: list[list[Chosen]] = [[] for _ in parts]
        logits = [self._run(part, own) for part, own in zip(parts, traces, strict=True)]
        if trace is not None:
            trace += [Chosen.together(chosen) for chosen in zip(*traces, strict=True)]
        return torch.cat(logits)

    def _run(self, x: Tensor, trace: list[Chosen] | None) -> Tensor:
        state: Tensor | Kept | Pair = x
        for position, loop, *asked in self.schedule:
            block = self.blocks[position]
            state = block(state) if loop is None and not any(asked) else block(state, loop, *asked)
            if trace is not None and isinstance(state, Kept) and state.chosen is not None:
                trace.append(state.chosen)
        assert isinstance(state, Tensor)
        return state


@dataclass(frozen=True)
class Arch:
    """A network: input resolution, channels, and block specs; the last block gives the class scores.

    Raises:
        ValueError: on construction, where a block cannot run on what the block before it gives.

    >>> from search_spaces.blocks import MB3D, MB4D, Head, Stem
    >>> arch = Arch(64, 3, (Stem(16), MB4D(), MB3D(heads=4, key_dim=16, value_dim=32), Head(10)))
    >>> Arch.from_json(arch.to_json()) == arch
    True
    """

    image_size: int  # pixels of each side
    channels: int
    blocks: tuple[BlockSpec, ...]
    states: tuple[State, ...] = field(init=False, repr=False, compare=False)  # before each block, and after the last

    def __post_init__(self) -> None:
        """Walk the states through the blocks, which checks that every shape meets the next."""
        if self.image_size < 1 or self.channels < 1:
            raise ValueError(f"image_size and channels must be at least 1, got {self.image_size} and {self.channels}")
        states: list[State] = [Map(self.channels, self.image_size, self.image_size)]
        for position, spec in enumerate(self.blocks):
            try:
                states.append(spec.output(states[-1]))
            except ValueError as error:
                raise ValueError(f"block {position} ({spec.kind}): {error}") from error
        if not isinstance(states[-1], Logits):
            raise ValueError(f"the last block must give class scores, but the network ends in {states[-1]}")
        for position in self.locations:
            if all(spec.passes > 1 for spec in (self.blocks[position - 1], self.blocks[position + 1])):
                raise ValueError(f"block {position} (token_prune) cannot lie inside an external loop")
        if len({spec.adaptive for spec in self.blocks if isinstance(spec, TokenPrune)}) > 1:
            raise ValueError("pruning locations choose by thresholds all, or none of them: adaptive must be the same")
        if len({spec.rest for spec in self.blocks if isinstance(spec, TokenPrune)}) > 1:
            raise ValueError(
                "what is not kept is dropped, fused or merged at all pruning locations: rest must be the same"
            )
        object.__setattr__(self, "states", tuple(states))

    @property
    def classes(self) -> int:
        """Number of classes."""
        last = self.states[-1]
        assert isinstance(last, Logits)
        return last.classes

    @property
    def encoder(self) -> bool:
        """Whether it has no classifier: features are what it gives."""
        return getattr(self.blocks[-1], "classes", None) == 0

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this network, the same on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Latency-table rows of the whole network, with repeats."""
        return tuple(row for spec, state in self.steps() for row in spec.rows(state))

    def with_classes(self, classes: int) -> "Arch":
        """The same network for another number of classes."""
        *body, head = self.blocks
        assert isinstance(head, Head)
        return dataclasses.replace(self, blocks=(*body, dataclasses.replace(head, classes=classes)))

    def at(self, image_size: int) -> "Arch":
        """The same network for images of another size; pruning locations keep the same share of the grid's patches.

        Where patches are merged, no fewer than half of those that reach a location.

        Raises:
            ValueError: a block cannot run on what it gets there.
        """
        blocks = list(self.blocks)
        for position in self.locations:
            blocks[position] = TokenPrune(1)  # fits grids of all sizes
        least = dataclasses.replace(self, blocks=tuple(blocks), image_size=image_size)
        left: int | None = None  # by the location before
        for position in self.locations:
            spec, old, new = self.blocks[position], self.states[position], least.states[position]
            assert isinstance(spec, TokenPrune) and isinstance(old, Tokens) and isinstance(new, Tokens)
            wanted = round(spec.keep * math.prod(new.grid) / math.prod(old.grid))
            left = max(spec.least(left or new.patches), wanted)
            blocks[position] = dataclasses.replace(spec, keep=left)
        return dataclasses.replace(least, blocks=tuple(blocks))

    def with_loops(self, loops: int) -> "Arch":
        """The same network with no block applied more than `loops` times.

        Raises:
            ValueError: fewer than one.
        """
        if loops < 1:
            raise ValueError(f"blocks are applied at least once, got {loops} loops")
        return dataclasses.replace(self, blocks=tuple(spec.shallower(loops) for spec in self.blocks))

    def steps(self) -> list[tuple[BlockSpec, State]]:
        """Each block with its input state."""
        return list(zip(self.blocks, self.states, strict=False))

    @property
    def locations(self) -> tuple[int, ...]:
        """Positions of the blocks that drop tokens."""
        return tuple(i for i, spec in enumerate(self.blocks) if isinstance(spec, TokenPrune))

    @property
    def rest(self) -> str:
        """What becomes of patches that are not kept, alike at all locations."""
        return next((spec.rest for spec in self.blocks if isinstance(spec, TokenPrune)), "dropped")

    def keeping(self, keeps: Sequence[int] | None = None, adaptive: bool | None = None) -> "Arch":
        """The same network with other counts of kept patches at its pruning locations, or chosen in the other way.

        Raises:
            ValueError: more patches are kept than reach a location; fewer than half of them where they are merged; or thresholds are to
                choose what is fused or merged.
        """
        blocks = list(self.blocks)
        for number, position in enumerate(self.locations):
            spec = blocks[position]
            assert isinstance(spec, TokenPrune)
            keep = spec.keep if keeps is None else keeps[number]
            blocks[position] = dataclasses.replace(
                spec, keep=keep, adaptive=spec.adaptive if adaptive is None else adaptive
            )
        return dataclasses.replace(self, blocks=tuple(blocks))

    def build(self) -> Network:
        """The network with fresh weights, in training mode, on the default device.

        Raises:
            ValueError: it is a stage of a cascade that reuses what the stage before knows.
        """
        if any(isinstance(spec, Reuse) for spec in self.blocks):
            raise ValueError(
                "a stage that reuses another's features or relations does not build alone; build its cascade"
            )
        return Network(self)

    def schedule(self) -> tuple[Step, ...]:
        """In which order blocks run: neighbours that ask for equally many passes as one, pass after pass; the last step before a pruning location scores, or gives keys."""
        found: list[Step] = []
        for passes, group in groupby(range(len(self.blocks)), key=lambda i: self.blocks[i].passes):
            run = list(group)
            loops = [None] if passes == 1 else range(passes)
            found += [Step(position, loop, False) for loop in loops for position in run]
        following = [step.position for step in found[1:]]
        asked = [position in self.locations for position in following] + [False]
        merges = self.rest == "merged"
        return tuple(
            step._replace(scored=ask and not merges, keyed=ask and merges)
            for step, ask in zip(found, asked, strict=True)
        )

    def example(self, batch: int = 1, seed: int = 0) -> Tensor:
        """A random input (batch, channels, image_size, image_size) that depends on `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels, self.image_size, self.image_size, generator=generator)

    def to_json(self) -> str:
        """The network as JSON text; equal networks give equal text."""
        return json.dumps(self._value())

    def _value(self) -> dict[str, Any]:
        """What is written as JSON."""
        return {
            "schema": SCHEMA,
            "kind": "arch",
            "image_size": self.image_size,
            "channels": self.channels,
            "blocks": [{"kind": spec.kind, **_fields(spec)} for spec in self.blocks],
        }

    @staticmethod
    def from_json(text: str) -> "Arch":
        """The network that `to_json` wrote, a `Cascade` where it is one.

        Raises:
            InputError: not JSON, a newer schema, an unknown block or field, or shapes that do not meet.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"not an architecture: invalid JSON at line {error.lineno} ({error.msg})") from error
        if isinstance(value, dict) and value.get("kind") == "cascade":
            from search_spaces.cascade import Cascade  # which is made of Archs

            return Cascade._of(value)
        return Arch._of(value)

    @staticmethod
    def _of(value: Any) -> "Arch":
        if not isinstance(value, dict) or value.get("kind") != "arch":
            raise InputError('not an architecture: expected a JSON object with "kind": "arch" or "cascade"')
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"architecture schema {value.get('schema')!r} is not {SCHEMA}; use the version that wrote it"
            )
        if not all(isinstance(value.get(name), int) for name in ("image_size", "channels")):
            raise InputError("not an architecture: image_size and channels must be whole numbers")
        if not isinstance(value.get("blocks"), list):
            raise InputError("not an architecture: blocks must be a list")
        specs = tuple(_spec(position, item) for position, item in enumerate(value["blocks"]))
        try:
            return Arch(value["image_size"], value["channels"], specs)
        except ValueError as error:
            raise InputError(f"not an architecture: {error}") from error


def _fields(spec: BlockSpec) -> dict[str, Any]:
    """The fields that differ from their defaults: a spec may get new ones without giving its networks other ids."""
    assert dataclasses.is_dataclass(spec)
    given = [
        (field.name, getattr(spec, field.name))
        for field in dataclasses.fields(spec)
        if field.default != getattr(spec, field.name)
    ]
    return {name: _plain(value) for name, value in given}


def _plain(value: Any) -> Any:
    """2.0 as 2, so that equal specs give equal text."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fits(item: Any, wanted: Any) -> bool:
    """Whether a JSON value may be a spec's field of the type `wanted`: int, float, bool, str, or a tuple of one of them."""
    if get_origin(wanted) is tuple:
        return isinstance(item, list) and all(_fits(part, get_args(wanted)[0]) for part in item)
    if wanted is float and isinstance(item, float):
        return math.isfinite(item)
    accepted = int if wanted is float else wanted
    return isinstance(item, accepted) and (accepted is bool or not isinstance(item, bool))


def _spec(position: int, value: Any) -> BlockSpec:
    """The spec of one JSON object, its fields checked by name and type."""
    where = f"not an architecture: block {position}"
    kind = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in BLOCKS:
        raise InputError(f"{where} has kind {kind!r}; known: {', '.join(BLOCKS)}")
    cls = BLOCKS[value["kind"]]
    assert dataclasses.is_dataclass(cls)
    given = {name: item for name, item in value.items() if name != "kind"}
    types = {f.name: f.type for f in dataclasses.fields(cls)}
    for name, item in given.items():
        if name not in types:
            raise InputError(f"{where} ({value['kind']}) has no field {name!r}; known: {', '.join(types)}")
        if not _fits(item, types[name]):
            raise InputError(f"{where} ({value['kind']}): {name} cannot be {item!r}")
    try:
        spec = cls(**{name: tuple(item) if isinstance(item, list) else item for name, item in given.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where} ({value['kind']}): {error}") from error
    assert isinstance(spec, BlockSpec)
    return spec
