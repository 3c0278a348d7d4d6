"""What a run is to find again after a kill: what calibration alone gave, in a run folder of its own, and what was measured."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from compress.prune import Pruned, Surrogate
from compress.slicing import BlockSize
from nas.files import read_json, write_json
from nas.runs import Run
from search_spaces.spaces.frames import Frame

__all__ = ["Times", "remembered", "saved", "steadiness"]

Figures = TypeVar("Figures", float, dict[str, float])
Times = dict[str, float]
"""Milliseconds by name: of a network `measured_ms`, `measured_median_ms` and the others of `Job.measured`. Budgets are held by the median."""


def steadiness(times: Times) -> float:
    """The table's statistic over the median of a network's runs: by it a limit in the median's milliseconds becomes one in the table's."""
    return times["measured_ms"] / times["measured_median_ms"]


def saved(
    out: Path, config: dict[str, Any], make: Callable[[], tuple[Pruned, list[Times]]]
) -> tuple[Pruned, list[Times]]:
    """What `make` gives, or gave before where the run folder `out` is done.

    Raises:
        InputError: `out` holds a run of another config.
    """
    run = Run.start(out, "prune", config, resume=True)
    with run.locked():
        if run.summary is None:
            found, times = make()
            run.save_network(found.arch, found.weights)
            run.finish({"cost": found.cost, **_described(found), "times": times})
            return found, times
        told = run.summary
    sizes = {int(position): None if size is None else BlockSize(**size) for position, size in told["sizes"].items()}
    frame = Frame(**{**told["frame"], "keeps": tuple(map(tuple, told["frame"]["keeps"])), "plan": ()})
    surrogate = Surrogate(**told["surrogate"]) if told.get("surrogate") else None  # older runs say nothing of it
    figures = told["cost"], told["dense_cost"], told["divergence"]
    found = Pruned(run.arch(), run.weights(), *figures, sizes, frame, surrogate)
    return found, told["times"]


def _described(found: Pruned) -> dict[str, Any]:
    sizes = {str(position): None if size is None else asdict(size) for position, size in found.sizes.items()}
    return {
        "dense_cost": found.dense_cost,
        "divergence": found.divergence,
        "sizes": sizes,
        "frame": asdict(found.frame),
        "surrogate": found.surrogate and asdict(found.surrogate),
    }


def remembered(path: Path, value: Figures | Callable[[], Figures]) -> Figures:
    """The number or times in a file, which is written first: measured again they would differ, and with them what follows from it."""
    if not path.exists():
        write_json(path, value() if callable(value) else value)
    found: Figures = read_json(path)
    return found
