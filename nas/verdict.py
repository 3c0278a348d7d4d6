"""Whether a measurement can be relied on, and why not."""

from collections import Counter
from dataclasses import replace

from nas.correction import Times
from nas.table_file import Adaptation, Verdict
from nas.visits import Protocol

__all__ = ["of_adaptation", "verdict_of", "worse"]

NOISY = 0.03  # a noise floor above this is no measurement to go by
DRIFTED = 0.25  # neither is a clock that moved by more
MOVED = 0.05  # nor are times that, at the same clock, differ by more between the sittings of a measurement
FEW_ROUNDS = 4  # fewer are no measurement to go by either: a slow spell is not told from a slow network
UNLIKE = 0.05  # held-out error of an adapted table above which the targets have too little in common
POOR = 0.1  # share of the networks that may lack undisturbed visits: the least disturbed ones stand in for them


def verdict_of(times: Times, rounds: int, protocol: Protocol) -> Verdict:
    """The verdict on times that were to be those of `rounds` visits of each network."""
    faults = []
    if times.noise_floor > NOISY:
        faults.append(f"the noise floor is {times.noise_floor:.1%}, above {NOISY:.0%}")
    if times.drift > DRIFTED:
        faults.append(f"the clock moved by {times.drift:.0%}, more than {DRIFTED:.0%}")
    if times.moved.each > MOVED:
        faults.append(f"times moved by {times.moved.each:.1%} from one sitting to the next, more than {MOVED:.0%}")
    visits = Counter(kept.visit.network for kept in times.every)
    if min(visits.values()) < min(FEW_ROUNDS, rounds):
        faults.append(f"there was time for {min(visits.values())} visits of some networks, below {FEW_ROUNDS}")
    if len(times.poor) > POOR * len(times.ms):
        needed = protocol.enough(rounds)
        faults.append(f"{len(times.poor)} of {len(times.ms)} networks had fewer than {needed} undisturbed visits")
    why = (
        "; ".join(faults) + ": measure afresh on a quieter machine" if faults else "noise, clock, visits are in bounds"
    )
    redone = 1 + max(kept.visit.round for kept in times.every) - rounds
    return Verdict(times.noise_floor, times.drift, times.disturbed, max(0, redone), not faults, why, times.interval)


def worse(*verdicts: Verdict) -> Verdict:
    """The verdict that tells more against a measurement."""
    return max(verdicts, key=lambda one: (not one.good, one.noise_floor))


def of_adaptation(verdict: Verdict, how: Adaptation) -> Verdict:
    """The verdict on the timings, and on what they say about the rows."""
    error = how.heldout_mape
    why = f"adapted from {how.tables} by {len(how.nets)} networks, held-out error {error:.1%}"
    if error > UNLIKE:
        why += f", above {UNLIKE:.0%}: measure it without --from"
    return replace(verdict, good=verdict.good and error <= UNLIKE, why=f"{why}; {verdict.why}")
