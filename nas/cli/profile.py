"""`nas profile`."""

from typing import Annotated

import typer

from nas.cli.options import BudgetMs, Json, NetworkName, Seed, show

__all__ = ["profile"]


def profile(
    model: NetworkName,
    target: Annotated[
        str, typer.Option("--target", help="Device, runtime, dtype, batch, threads.")
    ] = "cpu-ort-fp32-b1-t1",
    budget_ms: BudgetMs = None,
    rounds: Annotated[int, typer.Option("--rounds", min=4, help="Times that every network is visited.")] = 10,
    no_plateau: Annotated[
        bool, typer.Option("--no-plateau", help="Do not time narrower blocks, which takes about half of the time.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Where the milliseconds go: time per block and operator, and blocks that would take as long if they were smaller."""
    from nas.target import Target

    place = Target.parse(target)
    place.check_here()
    from nas.networks import network_named
    from nas.profile import profile as run

    arch = network_named(model, budget_ms, cascades=True).arch
    show(run(arch, place, rounds=rounds, seed=seed, plateau=not no_plateau), json)
