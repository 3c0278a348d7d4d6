"""What an image costs as far as each exit of a cascade, and on average where shares of the images leave at each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.cost import macs
from nas.latency import LatencyTable
from search_spaces.arch import Arch
from search_spaces.cascade import Cascade
from search_spaces.errors import InputError

__all__ = ["check_shares", "mean_of", "until_macs", "until_ms"]

ROUNDING = 1e-6  # by which shares may miss a sum of 1


def until_macs(cascade: Cascade) -> NDArray[np.float64]:
    """(exits,) multiply-accumulates of one image as far as each exit."""
    return np.cumsum([float(macs(stage)) for stage in cascade.stages])


def until_ms(cascade: Cascade, table: LatencyTable) -> NDArray[np.float64]:
    """(exits,) milliseconds of one batch of the table's target as far as each exit: of all stages until there, whatever the next asks of them included.

    The last is what `table.predict` gives.

    Raises:
        MissingLatency: the table lacks rows of the cascade; those of a reusing one are in tables of its own, see `Exits`.
    """
    ends = np.cumsum([len(stage.blocks) for stage in cascade.stages])
    found: NDArray[np.float64] = table.content.calibration.offset + np.cumsum(table.terms(cascade))[ends - 1]
    return found


def check_shares(shares: Sequence[float], arch: Arch) -> None:
    """Refuse what are no shares of images that leave at each exit of a network.

    Raises:
        InputError: the network has one exit, there is not one share for each, one is below 0, or they do not add up to 1.
    """
    if not isinstance(arch, Cascade):
        raise InputError("--shares are of a cascade's exits, and this network has one exit; leave it out")
    exits = len(arch.stages)
    if len(shares) != exits or min(shares) < 0 or not abs(sum(shares) - 1) <= ROUNDING:
        given = ",".join(f"{share:g}" for share in shares)
        raise InputError(f"--shares takes a share for each of {exits} exits, together 1, got {given}")


def mean_of(costs: NDArray[np.float64], shares: Sequence[float]) -> float:
    """Of `costs` (exits,) as far as each exit, the mean where these shares (exits,) of the images leave at each; see `check_shares`."""
    return float(costs @ np.array(shares))
