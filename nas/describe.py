"""What a network is made of and what it costs, as one JSON-ready value."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nas.cascade.costs import check_shares, mean_of, until_macs, until_ms
from nas.cost import macs, macs_fvcore, macs_thop, params
from nas.latency import LatencyTable
from search_spaces.arch import Arch
from search_spaces.cascade import Cascade
from search_spaces.states import Map, State, Streams, Tokens

__all__ = ["describe"]


def describe(arch: Arch, table: LatencyTable | None = None, shares: Sequence[float] | None = None) -> dict[str, Any]:
    """Costs of the whole and of each block; with thresholds, those of the network that keeps their mean numbers of patches.

    Args:
        arch: the network.
        table: what prices it; without one, every `ms` is None.
        shares: of a cascade's images, how many leave at each exit.

    Returns:
        `id`, `params`, `macs`, `macs_fvcore`, `macs_thop`, `predicted_ms` with its band `low` and `high`, and `blocks`:
        for each its `index`, `kind`, `label`, `output` shape without the batch (of a map with tokens beside it first the map's, then
        theirs), `params`, `macs` and `ms`. Of a cascade `exits` too: what an image that leaves at each has run through, `params`,
        `macs` and `ms` of one batch; and with `shares` their means, `mean_macs` and `mean_ms`.

    Raises:
        InputError: shares that are not of the network's exits, or do not add up to 1.
        MissingLatency: the table lacks rows of the network.
    """
    if shares is not None:
        check_shares(shares, arch)
    terms = table.terms(arch) if table else (None,) * len(arch.blocks)
    price = table.predict(arch) if table else None
    blocks = [
        {
            "index": index,
            "kind": spec.kind,
            "label": spec.label,
            "output": _shape(spec.output(state)),
            "params": spec.params(state),
            "macs": spec.macs(state),
            "ms": ms,
        }
        for index, ((spec, state), ms) in enumerate(zip(arch.steps(), terms, strict=True))
    ]
    exits = _exits(arch, table, shares) if isinstance(arch, Cascade) else {}
    return {
        "id": arch.id,
        "params": params(arch),
        "macs": macs(arch),
        "macs_fvcore": macs_fvcore(arch),
        "macs_thop": macs_thop(arch),
        "predicted_ms": price.ms if price else None,
        "low": price.low if price else None,
        "high": price.high if price else None,
        **exits,
        "blocks": blocks,
    }


def _exits(cascade: Cascade, table: LatencyTable | None, shares: Sequence[float] | None) -> dict[str, Any]:
    """Costs as far as each exit, and their means by shares."""
    work, ms = until_macs(cascade), None if table is None else until_ms(cascade, table)
    weights = accumulate(params(stage) for stage in cascade.stages)
    exits = [
        {"params": learned, "macs": int(work[number]), "ms": None if ms is None else float(ms[number])}
        for number, learned in enumerate(weights)
    ]
    if shares is None:
        return {"exits": exits}
    means = {"mean_macs": mean_of(work, shares), "mean_ms": None if ms is None else mean_of(ms, shares)}
    return {"exits": exits, **means}


def _shape(state: State) -> list[int]:
    if isinstance(state, Map):
        return [state.channels, state.height, state.width]
    if isinstance(state, Tokens):
        return [state.count, state.channels]
    if isinstance(state, Streams):
        return [*_shape(state.map), state.count, state.width]
    return [state.classes]
