"""What a network is made of and what it costs, as one JSON-ready value."""

from typing import Any

from nas.cost import macs, macs_fvcore, macs_thop, params
from nas.latency import LatencyTable
from search_spaces.arch import Arch
from search_spaces.cascade import Cascade
from search_spaces.states import Map, State, Streams, Tokens

__all__ = ["describe"]


def describe(arch: Arch, table: LatencyTable | None = None) -> dict[str, Any]:
    """Costs of the whole and of each block; with thresholds, those of the network that keeps their mean numbers of patches.

    Args:
        arch: the network.
        table: what prices it; without one, every `ms` is None.

    Returns:
        `id`, `params`, `macs`, `macs_fvcore`, `macs_thop`, `predicted_ms` with its band `low` and `high`, and `blocks`:
        for each its `index`, `kind`, `label`, `output` shape without the batch (of a map with tokens beside it first the map's, then
        theirs), `params`, `macs` and `ms`. Of a cascade `exits` too: what an image that leaves at each has run through, `params` and
        `macs`.

    Raises:
        MissingLatency: the table lacks rows of the network.
    """
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
    exits = {"exits": _exits(arch)} if isinstance(arch, Cascade) else {}
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


def _exits(cascade: Cascade) -> list[dict[str, int]]:
    """Costs as far as each exit."""
    found, total = [], {"params": 0, "macs": 0}
    for stage in cascade.stages:
        total = {"params": total["params"] + params(stage), "macs": total["macs"] + macs(stage)}
        found.append(total)
    return found


def _shape(state: State) -> list[int]:
    if isinstance(state, Map):
        return [state.channels, state.height, state.width]
    if isinstance(state, Tokens):
        return [state.count, state.channels]
    if isinstance(state, Streams):
        return [*_shape(state.map), state.count, state.width]
    return [state.classes]
