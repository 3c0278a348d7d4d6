"""Where a network's milliseconds go on a target, block by block, and which blocks would take as long if they were smaller."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.correction import STATISTICS, Times, settle
from nas.cost import macs
from nas.peak_memory import peak_mb, weights_mb
from nas.profile_probes import Chain, Narrower, Probes, make_probes
from nas.progress import say
from nas.solve import RIDGE, RowSystem, row_macs
from nas.target import Target
from nas.timing import time_sessions
from nas.visits import PROTOCOL
from search_spaces.arch import Arch
from search_spaces.blocks import Row
from search_spaces.cascade import Cascade

__all__ = ["ROUNDS", "decompose", "profile"]

ROUNDS = 10
PROFILE = replace(PROTOCOL, visits_share=0.5)  # no fewer than two visits each, or no band could be told
DRAWS = 40  # resamples of the visits, which tell how sure a time is
BAND = (0.1, 0.9)  # quantiles over them
UNSURE = 0.03  # noise or misfit above this is said
FLAT = 0.5  # a plateau: time falls by less than this share of what multiply-accumulates fall

Floats = NDArray[np.float64]


def profile(arch: Arch, target: Target, *, rounds: int = ROUNDS, seed: int = 0, plateau: bool = True) -> dict[str, Any]:
    """Time a network and others made of its blocks, with random weights, and share its time out among its blocks.

    Args:
        arch: the network.
        target: where.
        rounds: visits that each network gets at least.
        seed: decides the order of the visits.
        plateau: whether to time narrower blocks too; those of a cascade never are.

    Returns:
        `network`, `target`, `peak_mb` and `weights_mb` (see `nas.peak_memory`), `networks` (how many were timed), `rounds`,
        `statistic`, `noise_floor`, and the fields of `decompose`.

    Raises:
        InputError: the target asks for more than the machine has, or cannot run the network.
    """
    target.check_here()
    if plateau and isinstance(arch, Cascade):
        say("no plateau is told of a cascade, whose blocks are timed where they stand and not narrower")
    probes = make_probes(arch, plateau)
    visits = time_sessions(probes.archs, probes.skeleton, target, rounds=rounds, seed=seed, protocol=PROFILE)
    times = settle(visits, rounds, PROFILE)
    about: dict[str, Any] = {"network": arch.id, "target": target.name}
    about |= {"peak_mb": peak_mb([arch], target)[0], "weights_mb": weights_mb(arch)}
    about |= {"networks": len(probes.archs), "rounds": rounds}
    about |= {"statistic": times.statistic, "noise_floor": times.noise_floor, "disturbed": times.disturbed}
    found = decompose(probes, times.ms, list(_resampled(times, seed)), times.noise_floor)
    if max(times.noise_floor, found["misfit"]) > UNSURE:
        say(
            f"the noise floor is {times.noise_floor:.1%}, and times differ from the sum of their parts by {found['misfit']:.1%}: "
            "profile again on a quieter machine, or with more --rounds"
        )
    return about | found


def _resampled(times: Times, seed: int) -> Iterator[dict[str, float]]:
    """Each network's milliseconds from its visits, drawn with replacement."""
    rng, quantile = np.random.default_rng(seed), STATISTICS[times.statistic]
    for _ in range(DRAWS):
        drawn = {name: rng.integers(len(kept), size=len(kept)) for name, kept in times.kept.items()}
        yield {
            name: float(np.quantile(np.concatenate([times.kept[name][i].runs for i in chosen]), quantile))
            for name, chosen in drawn.items()
        }


@dataclass(frozen=True)
class _Solved:
    """Times of the probes and of their rows: first the best, then those of the resamples."""

    system: RowSystem
    networks: Mapping[Arch, Floats]  # ms (1 + draws,)
    known_macs: Mapping[Row, int]
    noise: float

    @staticmethod
    def of(archs: Sequence[Arch], measured: Sequence[Mapping[str, float]], noise: float) -> "_Solved":
        """The rows of `archs`, whose milliseconds are given by id, once or more, with a relative noise."""
        networks = {arch: np.array([ms[arch.id] for ms in measured]) for arch in archs}
        return _Solved(RowSystem.of(archs, {}), networks, row_macs(archs), noise)

    @cached_property
    def times(self) -> Mapping[Row, Floats]:
        """Milliseconds (1 + draws,) of each row."""
        ridge = max(RIDGE, self.noise)
        solved = np.array([self.system.solve(ms, ridge=ridge) for ms in np.array(list(self.networks.values())).T])
        return dict(zip(self.system.rows, solved.T, strict=True))

    @property
    def misfit(self) -> float:
        """Mean relative difference between the best time of a probe and the sum of its rows."""
        return float(np.mean([abs(self.ms(arch.rows)[0] / ms[0] - 1) for arch, ms in self.networks.items()]))

    def ms(self, rows: Sequence[Row]) -> Floats:
        """Milliseconds (1 + draws,) of some rows together."""
        out: Floats = np.sum([self.times[row] for row in rows], axis=0)
        return out

    def work(self, rows: Sequence[Row]) -> int | None:
        """Multiply-accumulates of some rows together, where known."""
        found = [self.known_macs.get(row) for row in rows]
        return None if None in found else sum(work for work in found if work is not None)


def decompose(
    probes: Probes, ms: Mapping[str, float], draws: Sequence[Mapping[str, float]] = (), noise: float = 0.0
) -> dict[str, Any]:
    """A network's blocks and operators, from the milliseconds of its probes by id.

    Args:
        probes: what was timed.
        ms: the time of each.
        draws: the same, resampled; without them bands have no width.
        noise: relative noise of the times; what they tell apart by less is left to the prior of `RowSystem`.

    Returns:
        `measured_ms` of the whole network; `total_ms`, what its blocks add up to, and their relative `difference`;
        `misfit`: the mean relative difference over all probes;
        `blocks`: for each its `name`, `ms` with the band `low` and `high`, `share` of the total, `macs`, `gmacs_per_s`,
        `plateau` (None where nothing was tried), the evidence for it as `smaller`, and `operators`; `operators`: the same
        added up over the network; `smaller`: what was tried with each different block.
    """
    arch, solved = probes.arch, _Solved.of(probes.archs, [ms, *draws], noise)
    total = float(solved.ms(arch.rows)[0])
    names = [f"{position} {spec.label}" for position, spec in enumerate(arch.blocks)]
    tried = [[_smaller(solved, chain, cut) for cut in chain.narrower] for chain in probes.chains]
    blocks = []
    for name, (spec, state), chain in zip(names, arch.steps(), probes.chain_of, strict=True):
        rows, smaller = spec.rows(state), [] if chain is None else tried[chain]
        flat = any(cut["plateau"] for cut in smaller) if smaller else None
        evidence = {"plateau": flat, "smaller": smaller, "operators": _operators(solved, rows, total)}
        blocks.append({"name": name, **_cost(solved, rows, spec.macs(state), total), **evidence})
    measured = ms[arch.id]
    return {
        "measured_ms": measured,
        "total_ms": total,
        "difference": total / measured - 1,
        "misfit": solved.misfit,
        "macs": macs(arch),
        "blocks": blocks,
        "operators": _operators(solved, arch.rows, total),
        "smaller": [{"blocks": _places(probes, number), **cut} for number, cuts in enumerate(tried) for cut in cuts],
    }


def _places(probes: Probes, number: int) -> str:
    """Where the block of a chain stands in the network."""
    return " ".join(str(position) for position, chain in enumerate(probes.chain_of) if chain == number)


def _cost(solved: _Solved, rows: Sequence[Row], work: int | None, total: float) -> dict[str, Any]:
    ms = solved.ms(rows)
    best, (low, high) = float(ms[0]), np.quantile(ms, BAND)
    return {
        "ms": best,
        "low": float(min(low, best)),
        "high": float(max(high, best)),
        "share": best / total,
        "macs": work,
        "gmacs_per_s": work / best / 1e6 if work and best else None,
    }


def _operators(solved: _Solved, rows: Sequence[Row], total: float) -> list[dict[str, Any]]:
    """Kinds of operators, the slowest first."""
    kinds = {op: [row for row in rows if row.op == op] for op in dict.fromkeys(row.op for row in rows)}
    found = [
        {"name": op, "count": len(own), **_cost(solved, own, solved.work(own), total)} for op, own in kinds.items()
    ]
    return sorted(found, key=lambda operator: -operator["ms"])


def _smaller(solved: _Solved, chain: Chain, cut: Narrower) -> dict[str, Any]:
    """How a block's time follows its work: the two chains' difference over what the chain's blocks take.

    The band is at least as wide as the noise floor makes it.
    """
    whole, less = solved.networks[chain.arch], solved.networks[cut.arch]
    blocks = whole * chain.length * solved.ms(chain.rows) / solved.ms(chain.arch.rows)
    share = 1 - (whole - less) / blocks
    margin = float(solved.noise * whole[0] / blocks[0])
    low, high = np.quantile(share, BAND)
    low, high = min(low, share[0] - margin), max(high, share[0] + margin)
    return {
        "what": cut.what,
        "macs_share": cut.macs_share,
        "ms_share": float(share[0]),
        "low": float(low),
        "high": float(high),
        "plateau": bool(1 - low < FLAT * (1 - cut.macs_share)),
    }
