"""`nas targets`."""

from nas.cli.options import Json, show

__all__ = ["targets"]


def targets(json: Json = False) -> None:
    """What this machine can measure, and what it lacks for the rest."""
    from nas.targets import targets as run

    show(run(), json)
