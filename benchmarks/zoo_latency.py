"""Every published network's milliseconds on several targets: predicted from parts, measured whole, beside what its paper says of its accuracy.

    python benchmarks/zoo_latency.py --out results/zoo_latency.json
    python benchmarks/zoo_latency.py --targets cpu-ort-fp32-b1-t1 --rounds 6 --minutes 15
    python benchmarks/zoo_latency.py --tables results/zoo_latency.json results/zoo_latency_int8.json

For each target, rows are solved from short networks: each different block of a network at the end of what leads to it, repeated where it can be
(`nas.profile_probes.row_probes`); no whole network is among them. As for a latency table, the whole networks are timed apart from those, in a process of their own before
them and one after them. A prediction is the sum of a network's rows, calibrated as a table's (`nas.calibration`) on the networks of the other
families, so nothing of it was told by a whole network of its own. Cascades stand as far as each of their exits: the rows of a later stage are solved from
cascades whose blocks are narrow, in all stages or in all but half of the last.

Weights are random, which no time depends on. AS-ViT's networks stand for their mean numbers of patches. `front`: of the networks whose papers tell an accuracy,
none is both as quick and as accurate. What is done lies in `--work`: every visit, and a target's figures once they are complete; an interrupted benchmark goes on
from there with the same command.
"""

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from zoo import PAPERS

from nas.calibration import calibrate
from nas.correction import Moved, settle
from nas.cost import macs, params
from nas.effort import leverage
from nas.elsewhere import time_elsewhere
from nas.files import read_json, write_json
from nas.latency import Prediction
from nas.plan import FEWEST
from nas.profile_probes import row_probes
from nas.progress import say
from nas.samples import Samples
from nas.solve import RowSystem
from nas.table_file import Calibration
from nas.target import Target, fingerprint, machine_slug
from nas.timing import settled
from nas.validate import accuracy
from nas.visits import PROTOCOL, Visit
from search_spaces import Cascade, zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError
from search_spaces.states import Tokens

TARGETS = ("cpu-ort-fp32-b1-t1", "cpu-ort-fp32-b1-t2", "cpu-openvino-fp32-b1-t1", "cpu-eager-fp32-b1-t1")
REFERENCE = "efficientformerv2_s0"  # a third of all visits are its, and it is among the quick ones
BEFORE, PROBED = 0.15, 0.75  # of the time given, after which the probes begin, and end
NARROW = 8  # channels of a head, and neurons, of a block that stands for a whole one


@dataclass(frozen=True)
class Subject:
    """A published network, or a cascade as far as one of its exits."""

    name: str
    exit: int | None  # from 1
    arch: Arch

    @property
    def family(self) -> str:
        return self.name.partition("_")[0]


def subjects(names: Iterable[str]) -> list[Subject]:
    found = []
    for name in names:
        arch = zoo.arch(name).keeping(adaptive=False)
        if isinstance(arch, Cascade):
            found += [Subject(name, number + 1, arch.until(number)) for number in range(len(arch.stages))]
        else:
            found.append(Subject(name, None, arch))
    return found


def narrowed(stage: Arch, whole: int = 0) -> Arch:
    """A stage whose transformer blocks are narrow, but for the first `whole` of them; what it tells the next has its shape."""
    blocks, left = list(stage.blocks), whole
    for position, (spec, state) in enumerate(stage.steps()):
        if not isinstance(spec, MB3D):
            continue
        assert isinstance(state, Tokens)
        left -= 1
        if left < 0:
            blocks[position] = replace(spec, key_dim=NARROW, value_dim=NARROW, ratio=NARROW / state.channels)
    return replace(stage, blocks=tuple(blocks))


def cascade_probes(cascade: Cascade) -> list[Arch]:
    """The first stage's probes, and short of whole cascades those from which stages are told where they run: with narrow blocks, and with half of them whole."""
    found, before = [*row_probes(cascade.stages[0])], list[Arch]()
    for number, stage in enumerate(cascade.stages):
        told, half = cascade.asks(number), sum(isinstance(spec, MB3D) for spec in stage.blocks) // 2
        for whole in (0, half):
            stages = (*before, narrowed(stage, whole))
            found.append(Cascade(stages, told) if before or told else stages[0])
        before.append(narrowed(stage))
    return found


def probes_of(networks: Sequence[Subject], names: Iterable[str]) -> tuple[Arch, ...]:
    """The networks that rows are solved from, none of which is to be predicted."""
    every: dict[Arch, None] = {}
    for name in names:
        arch = zoo.arch(name).keeping(adaptive=False)
        every |= dict.fromkeys(cascade_probes(arch) if isinstance(arch, Cascade) else row_probes(arch))
    whole = {one.arch for one in networks}
    probes = tuple(arch for arch in every if arch not in whole)
    lacking = {row for arch in whole for row in arch.rows} - {row for arch in probes for row in arch.rows}
    assert not lacking, f"no probe has the row {min(lacking).key}"
    return probes


def visited(
    networks: Sequence[Arch], probes: Sequence[Arch], target: Target, samples: Samples, given: argparse.Namespace
) -> tuple[list[Visit], list[Visit]]:
    """Visits of the whole networks, half of their rounds before those of the probes; and visits of the probes."""
    started, done = time.monotonic(), samples.done
    whole, parts = [visit for visit in done if visit.apart], [visit for visit in done if not visit.apart]

    def visits(archs: Sequence[Arch], before: Sequence[Visit], share: float, **how: Any) -> list[Visit]:
        deadline = started + 60 * given.minutes * share
        reference, seed = zoo.arch(REFERENCE), given.seed
        return time_elsewhere(archs, reference, target, seed=seed, done=before, deadline=deadline, **how)

    def note(visit: Visit) -> None:
        samples.append(replace(visit, apart=True))

    if not parts:
        whole = visits(networks, whole, BEFORE, rounds=-(-given.rounds // 2), record=note)
    if not parts or not done[-1].apart:
        weights = leverage(probes, networks)
        parts = visits(probes, parts, PROBED, rounds=given.rounds, record=samples.append, weights=weights)
    return visits(networks, whole, 1.0, rounds=given.rounds, record=note), parts


def priced(arch: Arch, rows: Mapping[str, float], by: Calibration) -> Prediction:
    """The sum of a network's rows, calibrated."""
    total = sum(rows[row.key] * (by.factor if row.op == by.kind else 1.0) for row in arch.rows)
    ms = by.offset + by.scale * total
    return Prediction(ms, ms * by.low, ms * by.high)


def predicted(
    networks: Sequence[Subject], rows: Mapping[str, float], measured: Mapping[str, float], moved: Moved
) -> list[Prediction]:
    """Each network's milliseconds by its rows, calibrated on the networks of all other families."""
    found = []
    for one in networks:
        others = [other.arch for other in networks if other.family != one.family]
        times = np.array([measured[arch.id] for arch in others])
        found.append(priced(one.arch, rows, calibrate(RowSystem.of(others, {}), rows, times, moved)))
    return found


def on_front(found: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each network, whether no other is at least as quick and as accurate, and better in one of both; False where the accuracy is not known."""
    points = [(-one["paper_top1"], one["measured"]["ms"]) for one in found if one["paper_top1"] is not None]

    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    return [one["paper_top1"] is not None and not beaten((-one["paper_top1"], one["measured"]["ms"])) for one in found]


def figures(
    networks: Sequence[Subject], probes: Sequence[Arch], whole: Sequence[Visit], parts: Sequence[Visit], rounds: int
) -> dict[str, Any]:
    """What the visits come to."""
    times = settle(parts, rounds, PROTOCOL)
    apart = settle(whole, rounds, PROTOCOL, times.statistic)
    system = RowSystem.of(probes, {})
    solved = system.solve(np.array([times.ms[arch.id] for arch in probes]))
    rows = {row.key: float(ms) for row, ms in zip(system.rows, solved, strict=True)}
    timings = settled(whole, rounds, times.statistic, None)
    predictions = predicted(networks, rows, apart.ms, apart.moved)
    found: list[dict[str, Any]] = [
        {
            "name": one.name,
            "exit": one.exit,
            "params": params(one.arch),
            "macs": macs(one.arch),
            "paper_top1": PAPERS[one.name].top1,
            "measured": asdict(timings[one.arch.id]),
            "predicted_ms": prediction.ms,
            "low": prediction.low,
            "high": prediction.high,
            "summed_ms": sum(rows[row.key] for row in one.arch.rows),
        }
        for one, prediction in zip(networks, predictions, strict=True)
    ]
    for own, front in zip(found, on_front(found), strict=True):
        own["front"] = front
    ms = np.array([own["measured"]["ms"] for own in found])
    return {
        "statistic": times.statistic,
        "noise_floor": apart.noise_floor,
        "moved": apart.moved.each,
        "disturbed": apart.disturbed,
        "probes": len(probes),
        "rows": len(rows),
        "probes_noise_floor": times.noise_floor,
        "timing_s": spent(whole) + spent(parts),
        **accuracy(np.array([prediction.ms for prediction in predictions]), ms),
        "within_band": float(np.mean([own["low"] <= own["measured"]["ms"] <= own["high"] for own in found])),
        "networks": found,
    }


def spent(visits: Sequence[Visit]) -> float:
    """Seconds of timing, without what preparing networks took."""
    segments = {visit.segment for visit in visits}
    at = [[visit.at for visit in visits if visit.segment == segment] for segment in segments]
    return round(sum(max(times) - min(times) for times in at), 1)


def measured(target: Target, given: argparse.Namespace) -> dict[str, Any]:
    """A target's figures, from its file where they are complete.

    Raises:
        InputError: the target cannot be measured here, or the folder holds another measurement.
    """
    asked = {"target": target.name, "machine": machine_slug(fingerprint(target)), "rounds": given.rounds}
    asked |= {"seed": given.seed, "names": given.names, "protocol": asdict(PROTOCOL)}
    path = given.work / f"{target.name}.json"
    if path.exists():
        known: dict[str, Any] = read_json(path)
        differing = [name for name in asked if known["asked"].get(name) != asked[name]]
        if differing:
            raise InputError(f"{path} is of another measurement ({', '.join(differing)} differ); choose another --work")
        return known
    target.check_here()
    networks = subjects(given.names)
    probes = probes_of(networks, given.names)
    say(f"{target.name}: {len(networks)} networks, {len(probes)} probes of their blocks")
    with Samples(given.work / f"{target.name}.samples.jsonl", asked, resume=True) as samples:
        visits = visited([one.arch for one in networks], probes, target, samples, given)
        found = {"asked": asked, "machine": fingerprint(target), **figures(networks, probes, *visits, given.rounds)}
        write_json(path, found)
        samples.finish()
    return found


def named(one: Mapping[str, Any]) -> str:
    """A network, or a cascade as far as an exit."""
    return f"`{one['name']}`" + ("" if one["exit"] is None else f", exit {one['exit']}")


def tables(targets: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of docs/zoo.md: every network on every target, how good the predictions are, how the runs spread; what is on a target's front is bold."""
    first = next(iter(targets.values()))["networks"]
    each = [(named(one), [found["networks"][number] for found in targets.values()]) for number, one in enumerate(first)]

    def milliseconds(own: Mapping[str, Any]) -> str:
        ms = f"{own['measured']['ms']:.1f}"
        return f"{f'**{ms}**' if own['front'] else ms}, {own['predicted_ms']:.1f}"

    def spread(own: Mapping[str, Any]) -> str:
        runs = own["measured"]
        return f"{runs['median']:.1f} ({runs['p10']:.1f} to {runs['p90']:.1f}), {runs['n']}"

    def quality(name: str, found: Mapping[str, Any]) -> list[str]:
        whole = [f"{found[key]:.0%}" for key in ("within_5pct", "within_10pct", "within_band", "disturbed")]
        fine = [f"{found[key]:.1%}" for key in ("mape", "bias", "noise_floor", "probes_noise_floor")]
        return [f"`{name}`", *whole, *fine, f"{found['kendall_tau']:.3f}"]

    heads = [f"`{name}`" for name in targets]
    told = [
        [f"{own[0]['params'] / 1e6:.2f}", f"{own[0]['macs'] / 1e9:.3f}", str(own[0]["paper_top1"] or "-")]
        for _, own in each
    ]
    of_each = [[name, *facts, *map(milliseconds, own)] for (name, own), facts in zip(each, told, strict=True)]
    measures = ["within 5%", "within 10%", "within the band", "disturbed visits"]
    measures += ["mean error", "bias", "noise floor", "that of the probes", "Kendall τ"]
    found = (
        table(["network", "params (M)", "GMACs", "top-1", *heads], of_each),
        table(["target", *measures], [quality(name, found) for name, found in targets.items()]),
        table(["network", *heads], [[name, *map(spread, own)] for name, own in each]),
    )
    return "\n\n".join(found)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def printed(paths: Iterable[Path]) -> str:
    """The tables of what files hold, written by `--out`.

    Raises:
        InputError: a file is missing or none of this benchmark's, holds other networks than the first, or a target that another holds.
    """
    targets: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for name, found in figures_in(path).items():
            if name in targets:
                raise InputError(f"{path} holds {name}, which a file before it holds too; leave one of them out")
            if found["asked"]["names"] != next(iter(targets.values()), found)["asked"]["names"]:
                raise InputError(f"{path} is of other networks than the files before it; print them apart")
            targets[name] = found
    return tables(targets)


def figures_in(path: Path) -> dict[str, Mapping[str, Any]]:
    """What a file of `--out` holds, by target.

    Raises:
        InputError: the file is missing, or not such a one.
    """
    held = read_json(path)
    found = held.get("targets") if isinstance(held, dict) else None
    if not isinstance(found, dict) or not found or any("asked" not in own for own in found.values()):
        raise InputError(f"{path} holds no figures of this benchmark; name files that its --out wrote")
    return found


def check(given: argparse.Namespace) -> list[Target]:
    """The targets, if what is asked can be done.

    Raises:
        InputError: it cannot.
    """
    targets = [Target.parse(name) for name in given.targets]
    networks = subjects(given.names)
    if given.rounds < PROTOCOL.least_rounds or not 0 < given.minutes < float("inf"):
        least = PROTOCOL.least_rounds
        raise InputError(f"rounds must be {least} or more and minutes positive, got {given.rounds}, {given.minutes:g}")
    few = [one.name for one in networks if sum(other.family != one.family for other in networks) < FEWEST]
    if few:
        raise InputError(f"{few[0]} is calibrated on {FEWEST} networks of other families at least; add some to --names")
    return targets


def command(targets: Iterable[str], given: argparse.Namespace) -> str:
    """What measures these targets so."""
    asked = f"--targets {' '.join(targets)} --rounds {given.rounds} --minutes {given.minutes:g} --seed {given.seed}"
    names = "" if tuple(given.names) == tuple(zoo.names()) else f" --names {' '.join(given.names)}"
    return f"python benchmarks/zoo_latency.py {asked}{names} --out {given.out}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="one after the other")
    parser.add_argument("--names", nargs="+", default=list(zoo.names()), help="networks of the zoo")
    parser.add_argument("--rounds", type=int, default=6, help="visits that each network gets at least")
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="for each target, preparing networks included; two rounds are made however long they take",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the order of timing")
    parser.add_argument("--work", type=Path, default=Path("results/zoo_latency"), help="folder of what is done")
    parser.add_argument("--out", type=Path, default=Path("results/zoo_latency.json"))
    parser.add_argument(
        "--tables", type=Path, nargs="+", help="print what these files hold, as docs/zoo.md does; measure nothing"
    )
    given = parser.parse_args()
    targets: dict[str, dict[str, Any]] = {}
    try:
        if given.tables:
            print(printed(given.tables))
            return
        for target in check(given):
            targets[target.name] = found = measured(target, given)
            say(f"{target.name}: mean error {found['mape']:.1%}, noise floor {found['noise_floor']:.1%}")
            write_json(given.out, {"command": command(targets, given), "targets": targets})
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
