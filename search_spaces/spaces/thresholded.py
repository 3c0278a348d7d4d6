"""Probes for the rows that networks with thresholds have beside those of a space."""

from search_spaces.arch import Arch
from search_spaces.blocks import Row

__all__ = ["with_thresholds"]


def with_thresholds(archs: tuple[Arch, ...]) -> tuple[Arch, ...]:
    """The shortest of the networks that drop patches, with thresholds, one for each row that these have."""
    found, seen = list[Arch](), set[Row]()
    for arch in sorted((arch for arch in archs if arch.locations), key=lambda arch: len(arch.blocks)):
        twin = arch.keeping(adaptive=True)
        new = set(twin.rows) - set(arch.rows) - seen
        if new:
            found.append(twin)
            seen |= new
    return tuple(found)
