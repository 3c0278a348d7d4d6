"""A measurement of a latency table: all that decides what is timed, and the visits that this comes to."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nas.effort import leverage
from nas.elsewhere import time_elsewhere
from nas.latency import LatencyTable
from nas.plan import Plan
from nas.samples import Samples
from nas.target import Target, fingerprint, machine_slug
from nas.timing import time_sessions
from nas.visits import Protocol, Visit
from search_spaces.arch import Arch
from search_spaces.space import Measurable

__all__ = ["Job", "few_visits", "new_visits", "visits_by_sittings"]

APART_SHARE = (
    0.1  # of the time for timing, which the calibration networks get at most before the others, and after them
)
SITTINGS, SHARE = 4, 5  # processes at most that share out the networks of an adaptation, so many to each at least


@dataclass(frozen=True)
class Job:
    """A measurement to make: all that decides what is timed, and how."""

    space: Measurable
    target: Target
    plan: Plan
    rounds: int
    seed: int
    protocol: Protocol
    deadline: float | None = None  # of `time.monotonic()`
    sources: tuple[LatencyTable, ...] = ()  # the tables to adapt, where rows are not measured

    def header(self) -> dict[str, Any]:
        """What a samples file must agree on to be resumed."""
        adapted = {"adapted_from": ",".join(source.content.sha256 for source in self.sources)} if self.sources else {}
        return {
            "space": self.space.name,
            "classes": self.space.classes,
            "target": self.target.name,
            "machine": machine_slug(fingerprint(self.target)),
            "protocol": asdict(self.protocol),
            "rounds": self.rounds,
            "seed": self.seed,
            "networks": sorted(arch.id for arch in self.plan.archs),
            "apart": sorted(arch.id for arch in self.plan.apart),
            "reference": self.plan.reference.id,
            "known_rows": len(self.plan.known),
            **adapted,
        }


def few_visits(job: Job, samples: Samples, floor: float | None) -> list[Visit]:
    """Visits of the networks of some missing rows."""
    return time_sessions(
        job.plan.archs,
        job.plan.reference,
        job.target,
        rounds=job.rounds,
        seed=job.seed,
        floor=floor,
        protocol=job.protocol,
        record=samples.append,
        done=samples.done,
        deadline=job.deadline,
        weights=leverage(job.plan.archs, job.plan.used),
    )


def visits_by_sittings(job: Job, samples: Samples) -> list[Visit]:
    """Visits of the networks of an adaptation, a share of them in each of a few processes, one after the other.

    No two processes lay networks out in memory alike, the reference too: what that makes of a share's times is among its held-out errors.
    """
    plan, visits = job.plan, samples.done
    seen = {visit.network for visit in visits}
    sittings = min(SITTINGS, max(1, len(plan.archs) // SHARE))
    shares = [plan.archs[number::sittings] for number in range(sittings)]
    begun = max((number for number, share in enumerate(shares) if seen & {arch.id for arch in share}), default=0)
    for number, share in enumerate(shares[begun:], begun):
        now = time.monotonic()
        visits = time_elsewhere(
            share,
            plan.reference,
            job.target,
            rounds=job.rounds,
            seed=job.seed,
            protocol=job.protocol,
            record=samples.append,
            done=visits,
            deadline=None if job.deadline is None else now + (job.deadline - now) / (sittings - number),
        )
    return visits


def new_visits(job: Job, samples: Samples) -> tuple[list[Visit], list[Visit]]:
    """Visits of the networks that a new table's rows are solved from, and of those that it is calibrated on.

    These are visited in two processes, one before that of the others and one after it: what a network's place in memory, and what a
    machine does to some kinds of blocks for a minute, makes of its time shows as a difference.
    """
    plan, now, done = job.plan, time.monotonic(), samples.done
    time_left = None if job.deadline is None else job.deadline - now
    apart, others = [visit for visit in done if visit.apart], [visit for visit in done if not visit.apart]

    def until(share: float) -> float | None:
        return None if time_left is None else now + share * time_left

    def visited(archs: Sequence[Arch], record: Callable[[Visit], None], **how: Any) -> list[Visit]:
        return time_elsewhere(
            archs, plan.reference, job.target, seed=job.seed, protocol=job.protocol, record=record, **how
        )

    def calibrate(rounds: int, deadline: float | None) -> list[Visit]:
        def record(visit: Visit) -> None:
            samples.append(replace(visit, apart=True))

        return visited(plan.apart, record, rounds=rounds, done=apart, deadline=deadline)

    if not others:
        apart = calibrate(-(-job.rounds // 2), until(APART_SHARE))
    if not others or not done[-1].apart:
        weights = leverage(plan.archs, plan.used)
        deadline = until(1 - APART_SHARE)
        others = visited(plan.archs, samples.append, rounds=job.rounds, done=others, deadline=deadline, weights=weights)
    return others, calibrate(job.rounds, until(1.0))
