"""`LatencyTable`: what a network takes on a target, in milliseconds, from measured rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nas.code_prices import CHUNK, CodePrices
from nas.kept_rows import KeptRows, could_price
from nas.table_file import Content, RowTime, read, stem_of
from nas.target import Target, fingerprint, same_machine
from search_spaces.errors import InputError

if TYPE_CHECKING:  # loading and listing tables must not wait for torch
    from torch import Tensor

    from compress.token_losses import Curve
    from search_spaces.arch import Arch
    from search_spaces.blocks import BlockSpec, Row
    from search_spaces.space import Measurable, Space
    from search_spaces.states import State

__all__ = ["LatencyTable", "MissingLatency", "Prediction"]

NAMED = 3  # missing rows that a message names before it counts


class MissingLatency(InputError):
    """The table lacks rows that a network needs."""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of a network, and the band that nine of ten networks stay within."""

    ms: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyTable:
    """The measured rows of a space on one target and machine."""

    content: Content
    path: Path  # of the two files, without suffix
    _prices: WeakKeyDictionary[Space, CodePrices] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )
    _blocks: dict[tuple[BlockSpec, State], float | tuple[Row, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def load(path: Path | str) -> LatencyTable:
        """The table in `<path>.csv` and `<path>.json`; either file's path will do. Any machine's table loads.

        Raises:
            InputError: a file is missing, damaged or of another schema, or this version does not know the target.
        """
        table = LatencyTable(read(Path(path)), stem_of(Path(path)))
        try:
            _ = table.reference
        except InputError as error:
            raise InputError(f"{table.path.name} has a reference that is {error}; measure again") from error
        return table

    @property
    def target(self) -> Target:
        """Where the rows were measured."""
        return Target.parse(self.content.target)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change with any row."""
        return self.content.sha256[:12]

    @property
    def rows(self) -> Mapping[str, RowTime]:
        """Times by row key."""
        return self.content.rows

    @property
    def verdict(self) -> dict[str, Any]:
        """Whether to trust the measurement, JSON-ready: noise_floor, drift, disturbed, rounds_redone, good, why."""
        return asdict(self.content.verdict)

    @property
    def adapted_from(self) -> str | None:
        """The tables that rows were adapted from by the times of a few networks; None where all were measured."""
        names = [one.adapted_from.tables for one in self.content.measurements if one.adapted_from is not None]
        return names[-1] if names else None

    @property
    def statistic(self) -> str:
        """Which statistic the times are; whoever times against `reference_ms` takes the same."""
        return self.content.statistic

    @property
    def reference_ms(self) -> float:
        """Milliseconds of the reference network when the rows were measured."""
        return self.content.reference_ms

    @property
    def reference(self) -> Arch:
        """The network that was timed all along; its ratio to `reference_ms` tells another day's clock."""
        from search_spaces.arch import Arch

        return Arch.from_json(json.dumps(self.content.reference))

    def predict(self, arch: Arch) -> Prediction:
        """Milliseconds of one batch through `arch`; with thresholds, where every image keeps `keep` patches at each location.

        Raises:
            MissingLatency: rows of the network have no price.
        """
        calibration = self.content.calibration
        ms = calibration.offset + calibration.scale * sum(self._priced(arch))
        return Prediction(ms, ms * calibration.low, ms * calibration.high)

    def terms(self, arch: Arch) -> tuple[float, ...]:
        """Milliseconds of each block; with the calibration's offset they add up to `predict(arch).ms`.

        Raises:
            MissingLatency: rows of the network have no price.
        """
        return tuple(self.content.calibration.scale * ms for ms in self._priced(arch))

    def block_ms(self, spec: BlockSpec, state: State) -> float:
        """Milliseconds of one block.

        Raises:
            MissingLatency: its rows have no price.
        """
        ms = self._block(spec, state)
        if isinstance(ms, tuple):
            raise self._missing(ms, f"a block {spec.label}", None)
        return self.content.calibration.scale * ms

    def predict_many(self, codes: NDArray[np.integer[Any]], space: Space | None = None) -> NDArray[np.float64]:
        """Milliseconds (n,) of the networks of codes (n, positions), what `predict` gives for each; canonical or not.

        A million and more a second, in steps: beside what is returned, memory does not grow with n. Codes of any integer
        type are taken as they are. The first call for a space takes up to seconds to prepare, see `Space.terms`.

        Args:
            codes: one network a row.
            space: what decodes them; without it, the table's space with the class count measured last.

        Raises:
            InputError: codes have another shape or type, one has a value out of range, or the table's networks have none.
            MissingLatency: rows of a network have no price.
        """
        space = space or self._own_space
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(space.choices) or codes.dtype.kind not in "iu":
            wanted = f"whole numbers of shape (networks, {len(space.choices)})"
            raise InputError(f"codes of {space.name} are {wanted}, got {codes.dtype} of shape {codes.shape}")
        found = np.empty(len(codes))
        for start in range(0, len(codes), CHUNK):
            found[start : start + CHUNK] = self._predict_chunk(codes[start : start + CHUNK], space)
        return found

    def predict_chunks(
        self, chunks: Iterable[NDArray[np.integer[Any]]], space: Space | None = None
    ) -> Iterator[NDArray[np.float64]]:
        """Milliseconds chunk by chunk, as `predict_many`: for more codes than memory holds."""
        for codes in chunks:
            yield self.predict_many(codes, space)

    def curve(self, arch: Arch) -> Curve:
        """Milliseconds of `arch` over the patches kept at its locations, calibrated as in `predict`: (B,) counts each -> (B,) ms.

        It is what `predict` gives at every whole number of patches, linear between them and differentiable.

        Raises:
            MissingLatency: rows of the network have no price.
            ValueError: the network has no pruning location.
        """
        from compress import curve_of
        from search_spaces.states import Tokens

        def price(spec: BlockSpec, state: State) -> float:
            ms = self._block(spec, state)
            if isinstance(ms, tuple):
                raise self._missing(ms, f"network {arch.id}", arch)
            return self.content.calibration.scale * ms

        self._priced(arch)  # names all that is missing at once
        patches = [state.patches for place in arch.locations if isinstance(state := arch.states[place], Tokens)]
        scaled = curve_of(arch, price, range(1, 1 + max([2, *patches])))

        def curve(counts: Sequence[Tensor]) -> Tensor:
            return scaled(counts) + self.content.calibration.offset

        return curve

    def price_counts(self, arch: Arch, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Milliseconds (images,) of `arch`, one image at a time, where they keep `counts` (images, locations) patches.

        Raises:
            MissingLatency: rows of the network have no price.
            ValueError: the network has no pruning location, or another number of them.
        """
        import torch

        columns = torch.from_numpy(np.ascontiguousarray(counts.T, np.float64)).unbind()
        found: NDArray[np.float64] = self.curve(arch)(columns).numpy()
        return found

    def open_space(self) -> Measurable:
        """The table's space, with the class count that was measured last, what may be left of its dense network, or its cascade's exits.

        Raises:
            InputError: this version has no such space, or the table does not tell of which network it is.
        """
        from nas.of_network import opened_from
        from search_spaces.arch import Arch
        from search_spaces.spaces import SPACES
        from search_spaces.spaces.remains import PREFIX

        if self.content.remains_of is not None:
            return opened_from(Arch.from_json(self.content.remains_of.arch), self.content.remains_of.parts)
        if self.content.space.startswith(PREFIX):
            raise InputError(
                f"{self.path.name} is from before tables told which network they are of; remove its files, and "
                f"`nas prune` with --target {self.target.name} measures them anew"
            )
        if self.content.space not in SPACES:
            known = ", ".join(SPACES)
            raise InputError(f"{self.path.name} is of an unknown space, {self.content.space!r}; known: {known}")
        return SPACES[self.content.space](classes=self.content.classes[-1])

    def unmeasured(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """Those of `rows` that were not measured themselves, each once: what a measurement adds."""
        return tuple(row for row in dict.fromkeys(rows) if row.key not in self.content.rows)

    def unpriced(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """Those of `rows` that have no price, each once: neither measured nor, behind a pruning location, between measured ones."""
        return tuple(row for row in self.unmeasured(rows) if self._kept.ms(row) is None)

    def check_machine(self, foreign: bool = False) -> None:
        """Refuse a table of another machine, unless `foreign` tables are welcome.

        Raises:
            InputError: the fingerprint differs in what decides the time.
        """
        here = fingerprint(self.target)
        differing = same_machine(self.content.fingerprint, here)
        if differing and not foreign:
            there = self.content.fingerprint
            found = ", ".join(f"{name} {there.get(name)} there, {here[name]} here" for name in differing)
            mend = "measure one here with `nas measure`, or pass --foreign-table"
            raise InputError(f"{self.path.name} was measured on another machine ({found}); {mend}")

    def _predict_chunk(self, codes: NDArray[np.integer[Any]], space: Space) -> NDArray[np.float64]:
        """Milliseconds of a few codes of the right shape."""
        prices, calibration = self._prices_of(space), self.content.calibration
        wrong = prices.outside(codes)
        if wrong is not None:
            space.decode(codes[wrong])  # says what is wrong
        found = calibration.offset + calibration.scale * prices.ms(codes)
        if np.isnan(found).any():
            self.predict(space.decode(codes[np.isnan(found).argmax()]))  # names the rows
            raise AssertionError(f"terms of {space.name} need rows that its networks do not")
        return found

    def _prices_of(self, space: Space) -> CodePrices:
        """Prepared once for a space."""
        if space not in self._prices:
            known: dict[Row, float] = {}

            def ms(rows: tuple[Row, ...]) -> float:
                for row in rows:
                    if row not in known:
                        known[row] = np.nan if self.unpriced([row]) else self._row_ms(row)
                return sum(known[row] for row in rows)

            limits = [len(choice.values) for choice in space.choices]
            self._prices[space] = CodePrices.of(space.terms, limits, ms)
        return self._prices[space]

    @cached_property
    def _own_space(self) -> Space:
        from search_spaces.space import Space

        space = self.open_space()
        if not isinstance(space, Space):
            raise InputError(f"networks of {space.name} have no codes; price them one by one, as architectures")
        return space

    def _priced(self, arch: Arch) -> list[float]:
        """Sum of rows of each block, uncalibrated."""
        priced = [self._block(spec, state) for spec, state in arch.steps()]
        missing = [row for block in priced if isinstance(block, tuple) for row in block]
        if missing:
            raise self._missing(tuple(dict.fromkeys(missing)), f"network {arch.id}", arch)
        return [block for block in priced if not isinstance(block, tuple)]

    def _block(self, spec: BlockSpec, state: State) -> float | tuple[Row, ...]:
        """Sum of a block's rows, or those of them that are missing; remembered."""
        if (spec, state) not in self._blocks:
            rows = spec.rows(state)
            self._blocks[spec, state] = self.unpriced(rows) or sum(self._row_ms(row) for row in rows)
        return self._blocks[spec, state]

    def _row_ms(self, row: Row) -> float:
        """Uncalibrated milliseconds of a row that has a price."""
        measured = self.content.rows.get(row.key)
        ms = self._kept.ms(row) if measured is None else measured.ms
        assert ms is not None
        return ms

    @cached_property
    def _kept(self) -> KeptRows:
        return KeptRows.of(self.content.rows)

    def _missing(self, rows: tuple[Row, ...], what: str, arch: Arch | None) -> MissingLatency:
        from nas import one_network
        from search_spaces.cascade import Cascade
        from search_spaces.spaces import SPACES, exits, remains

        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        named = ", ".join(row.key for row in rows[:NAMED]) + more
        flag = "" if arch is None or arch.classes in self.content.classes else f" --classes {arch.classes}"
        mend = f"measure them with `nas measure --space {self.content.space} --target {self.content.target}{flag}`"
        if isinstance(arch, Cascade):
            mend = f"pass --target {self.content.target} in its place, which measures those of a cascade"
        elif self.content.space.startswith(one_network.PREFIX):
            mend = f"it is of one network alone; pass --target {self.content.target} in its place, which measures another's"
        elif self.content.space.startswith(exits.PREFIX):
            mend = "it is of one cascade's exits; give the table of a space, see `nas tables`"
        elif self.content.space.startswith(remains.PREFIX):
            mend = f"`nas prune` of the table's network with --target {self.content.target} measures what may be left of it"
        elif arch is not None and self.content.space in SPACES:
            if not could_price(SPACES[self.content.space](classes=arch.classes), rows):
                mend = f"the space {self.content.space} has none such; pass --target {self.content.target} in its place"
        return MissingLatency(f"{self.path.name} lacks {len(rows)} rows of {what}: {named}; {mend}")
