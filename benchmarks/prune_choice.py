"""Which network of each way holds each budget, for `prune_accuracy.py`: chosen by the clock, and chosen again until it agrees."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prune_ways import WAYS, Source

from compress.dense import network_of
from compress.prune import Pruned
from nas.cost import macs, params
from nas.errors import BudgetError
from nas.files import read_json, write_json
from nas.progress import say
from nas.runs import save_weights
from nas.tables import timed
from nas.timing import Timing
from search_spaces.arch import Arch, Network

__all__ = ["DENSE", "OURS", "UNTRAINED", "Pick", "chosen", "started"]

SHARES = tuple(np.linspace(0.95, 0.05, 19).tolist())  # of a network, that each way tries
TRIES = 6  # times that all that is chosen is timed, until each is within its budget
SPARE = 0.995  # share of its budget that ours aims at after one above it
OURS, UNTRAINED, DENSE = "ours", "ours untrained", "dense"


@dataclass(frozen=True)
class Pick:
    """One network of a way within a share of the dense network's milliseconds."""

    way: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.way}-{self.share:g}-{self.seed}"


class Choice:
    """Which network of each way holds each budget; changed until the clock agrees."""

    def __init__(self, source: Source, given: argparse.Namespace) -> None:
        self.source, self.given = source, given
        self.ways = [way for way in given.ways if way != OURS]
        first = {way: [WAYS[way](source, share, 0).arch for share in SHARES] for way in self.ways}
        every = list(dict.fromkeys([source.arch, *(arch for archs in first.values() for arch in archs)]))
        times = dict(zip(every, timed(every, source.job.table, given.seed, given.rounds), strict=True))
        self.dense_ms = times[source.arch].ms
        self.ladders: dict[
            str, list[tuple[float, float, Arch]]
        ] = {  # milliseconds, share of the network; slowest first
            way: sorted(
                ((times[arch].ms, share, arch) for arch, share in zip(archs, SHARES, strict=True)),
                key=lambda rung: -rung[0],
            )
            for way, archs in first.items()
        }
        self.rungs: dict[tuple[str, float], int] = {}
        self.limits: dict[tuple[float, int], float] = {}
        self.ours: dict[tuple[float, int], Pruned] = {}
        for share in given.shares:
            budget = share * self.dense_ms
            for way, ladder in self.ladders.items():
                self._step(way, share, next((i for i, rung in enumerate(ladder) if rung[0] <= budget), len(ladder)))
            for seed in given.seeds if OURS in given.ways else ():
                self._tighten(share, seed, budget)

    def _step(self, way: str, share: float, rung: int) -> None:
        """Choose a rung of a way's ladder; a way whose every network is too slow is left out, and that is said."""
        self.rungs.pop((way, share), None)
        if rung < len(self.ladders[way]):
            self.rungs[way, share] = rung
        else:
            say(f"{way}: none of its networks takes {share:.0%} of the dense network's time; it is left out there")

    def _tighten(self, share: float, seed: int, limit: float) -> None:
        before = self.ours.get((share, seed))
        self.limits[share, seed] = limit
        self.ours[share, seed] = self.source.prunable(seed).within(limit, None if before is None else before.frame)

    def archs(self) -> dict[Pick, Arch]:
        """What is chosen now."""
        found = {
            Pick(way, share, seed): self.ladders[way][rung][2]
            for (way, share), rung in self.rungs.items()
            for seed in self.given.seeds
        }
        return found | {Pick(OURS, share, seed): one.arch for (share, seed), one in self.ours.items()}

    def settle(self) -> dict[Pick, Timing]:
        """Time all that is chosen, and choose again what is over its budget, until nothing is.

        Raises:
            BudgetError: something still is, after a bounded number of times.
        """
        for _ in range(TRIES):
            chosen = self.archs()
            archs = list(dict.fromkeys([self.source.arch, *chosen.values()]))
            times = dict(
                zip(archs, timed(archs, self.source.job.table, self.given.seed, self.given.rounds), strict=True)
            )
            self.dense_ms = times[self.source.arch].ms
            over = {
                pick: times[arch].ms / (pick.share * self.dense_ms)
                for pick, arch in chosen.items()
                if times[arch].ms > pick.share * self.dense_ms
            }
            if not over:
                dense = Pick(DENSE, 1.0, self.given.seeds[0])
                return {dense: times[self.source.arch], **{pick: times[arch] for pick, arch in chosen.items()}}
            say(f"over the budget: {', '.join(f'{pick.name} by {excess - 1:.1%}' for pick, excess in over.items())}")
            for pick, excess in over.items():
                if pick.way == OURS:
                    limit = self.limits[pick.share, pick.seed]
                    self._tighten(pick.share, pick.seed, limit * SPARE / excess)
            for way, share in {(pick.way, pick.share) for pick in over if pick.way != OURS}:
                self._step(way, share, self.rungs[way, share] + 1)
        raise BudgetError(f"after {TRIES} tries some networks are over their budgets; try on a quieter machine")

    def network(self, pick: Pick) -> Network:
        """A chosen network with its weights before any training."""
        if pick.way == OURS:
            found = self.ours[pick.share, pick.seed]
            return network_of(found.arch, found.weights)
        of_network = self.ladders[pick.way][self.rungs[pick.way, pick.share]][1]
        return WAYS[pick.way](self.source, of_network, pick.seed)


def chosen(source: Source, given: argparse.Namespace) -> dict[Pick, dict[str, Any]]:
    """Figures of each network chosen; its weights before any training are in the folder `start`."""
    path = given.work / "choice.json"
    if not path.exists():
        choice, found = Choice(source, given), []
        for pick, timing in choice.settle().items():
            network = source.job.network if pick.way == DENSE else choice.network(pick)
            save_weights(started(given, pick), dict(network.state_dict()), network.arch)
            cost = {"macs": macs(network.arch), "params": params(network.arch), "arch": network.arch.id}
            of_budget = timing.ms / (pick.share * choice.dense_ms)
            found.append({**asdict(pick), **cost, "of_budget": of_budget, "timing": asdict(timing)})
        write_json(path, {"asked": wanted(source, given), "picks": found})
    known = read_json(path)
    if known["asked"] != wanted(source, given):
        raise SystemExit(f"{given.work} holds another benchmark; choose another --work")
    return {Pick(one["way"], one["share"], one["seed"]): one for one in known["picks"]}


def wanted(source: Source, given: argparse.Namespace) -> dict[str, Any]:
    """What the choice depends on, as JSON has it."""
    names = ("ways", "shares", "seeds", "images", "parts", "target", "data")
    asked: dict[str, Any] = json.loads(json.dumps({name: getattr(given, name) for name in names}))
    return {"arch": source.arch.id, **asked}


def started(given: argparse.Namespace, pick: Pick) -> Path:
    found: Path = given.work / "start" / f"{pick.name}.safetensors"
    return found
