"""What a measurement records: visits, each a few runs of one network back to back, and the figures that govern them."""

from dataclasses import dataclass

__all__ = ["PROTOCOL", "REFERENCE", "Protocol", "Visit"]

REFERENCE = "reference"  # the name under which visits of the reference network are recorded


@dataclass(frozen=True)
class Protocol:
    """The figures of the timing protocol; they are written beside every measurement."""

    version: int = 3
    visit_ms: float = 5.0  # a visit's runs add up to about this, within the two bounds
    min_runs: int = 2  # of a slow network; a round of those in a space at 224 pixels takes minutes
    max_runs: int = 60
    warm_runs: int = 8  # unrecorded runs at most, until the time stops falling: another network's data fill the caches
    beat: int = 2  # the reference is visited before every so many visits, and after the last of a round
    window: int = 100  # reference visits on either side that tell the clock of the moment
    tolerance: float = 0.1  # a visit whose reference was further above its floor than this is disturbed
    visits_share: float = 1 / 3  # undisturbed visits that a network needs, as a share of the rounds
    interval: float = 0.02  # a network is visited more often until 95% of its interval is within so much of its time
    extra_share: float = (
        2.0  # at most so many times the rounds are added for that, and for networks that were disturbed,
    )
    patience_s: float = 0.4  # or as many as fit into this, times the rounds: few networks may all meet one slow spell
    least_rounds: int = 2  # of all networks, however little time there is

    def enough(self, rounds: int) -> int:
        """Undisturbed visits that a network needs."""
        return max(1, round(rounds * self.visits_share))

    def last_round(self, rounds: int) -> int:
        """Where the extra rounds end, exclusive."""
        return rounds + round(rounds * self.extra_share)


PROTOCOL = Protocol()


@dataclass(frozen=True)
class Visit:
    """Runs of one network, back to back."""

    segment: int  # which process timed it: a resumed measurement has several, and drift is not told across them
    round: int
    order: int  # position within the segment
    network: str  # an Arch's id, or `REFERENCE`
    at: float  # time of day, seconds since 1970
    runs: tuple[float, ...]  # milliseconds, in the order they were run
    apart: bool = False  # whether of the session that calibrates, which has no other networks open
