"""Building a latency table: time its networks, solve for the rows, write the files."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.adaptation import NETS, adapt, check_sources, choose_nets, usual_nets
from nas.calibration import calibrate
from nas.correction import Times, settle
from nas.job import Job, few_visits, new_visits, visits_by_sittings
from nas.kept_rows import filled
from nas.latency import LatencyTable
from nas.of_network import kept_of
from nas.plan import Plan, make_plan, rows_to_time
from nas.progress import say
from nas.samples import Samples, finish_section
from nas.scratch import scratch_dir
from nas.solve import RowSystem
from nas.table_file import (
    Adaptation,
    Calibration,
    Content,
    Measurement,
    Origin,
    RemainsOf,
    RowTime,
    Verdict,
    rewrite,
    sweep,
    write,
)
from nas.target import Target, fingerprint, machine_slug
from nas.verdict import of_adaptation, verdict_of, worse
from nas.visits import PROTOCOL, Protocol, Visit
from search_spaces.errors import InputError
from search_spaces.space import Measurable

__all__ = ["TABLE_ROUNDS", "measure_table", "table_stem"]

TABLE_ROUNDS = 8  # visits that each network of a table gets at least; more follow where they pay
TIMING_SHARE = 0.92  # of the time given; what is left is for solving
RESAMPLED = 10  # times that visits are drawn anew to tell how well rows are known


def table_stem(space: Measurable, target: Target, out: Path) -> Path:
    """Where this machine's table lies in the folder `out`, without suffix."""
    return out / f"{space.name}--{target.name}--{machine_slug(fingerprint(target))}"


def measure_table(
    space: Measurable,
    target: Target,
    out: Path,
    *,
    rounds: int = TABLE_ROUNDS,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    fresh: bool = False,
    protocol: Protocol = PROTOCOL,
    sources: Sequence[LatencyTable] = (),
    nets: int = NETS,
) -> LatencyTable:
    """Measure the rows of a space that this machine's table in `out` lacks, and write the table.

    With `sources` no row is measured: a new table is adapted from those, by the times of a few whole networks.

    Args:
        space: whose rows.
        target: where to run them.
        out: folder of the table and of the samples file beside it.
        rounds: visits that each network gets at least, unless the time is up before.
        minutes: for all of it; a resumed measurement gets as many again. Two rounds are made however long they take.
        seed: draws the calibration networks and the order of the visits.
        resume: go on with a measurement that was interrupted.
        fresh: measure all rows anew.
        protocol: the figures of the timing protocol.
        sources: tables of the same space, of any targets and machines, with all of its rows between them.
        nets: how many networks to time for an adaptation.

    Raises:
        InputError: the target asks for more than the machine has, a file is in the way or damaged, `rounds` is below one,
            `minutes` not positive, or the space cannot be adapted from `sources` by so many networks.
    """
    deadline = _deadline(minutes)
    target.check_here()
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    scratch_dir()  # removes what killed processes left, even if nothing is measured now
    stem = table_stem(space, target, out)
    table = _existing(stem, fresh)
    if table is not None and not table.unmeasured(rows_to_time(space, target.thresholds)):
        how = f", adapted from {table.adapted_from}; --fresh measures them" if table.adapted_from else ""
        say(f"{stem.name} has every row of {space.name} already{how}")
        about = {"space": space.name, "classes": space.classes, "target": target.name}
        finish_section(_beside(stem), about, lambda: rewrite(stem))
        return table
    if sources:
        plan = _adaptation_plan(space, target, sources, nets, seed, None if table is None else stem.name)
    else:
        plan = make_plan(space, table, seed, target.thresholds)
    job = Job(space, target, plan, rounds, seed, protocol, deadline, tuple(sources))
    with Samples(_beside(stem), job.header(), resume=resume, fresh=fresh and not resume) as samples:
        sweep(stem)
        _run(job, stem, table, samples)
    measured = LatencyTable.load(stem)
    if not measured.content.verdict.good:
        say(f"{stem.name}: {measured.content.verdict.why}")
    return measured


def _adaptation_plan(
    space: Measurable, target: Target, sources: Sequence[LatencyTable], nets: int, seed: int, present: str | None
) -> Plan:
    """The networks to time for a table that is adapted from `sources`; `present` names a table that is in its way."""
    check_sources(sources, space, target.thresholds)
    if present is not None:
        raise InputError(f"{present} is there and lacks rows of {space.name}; pass --fresh to adapt a new one over it")
    return Plan((), choose_nets(sources, space, nets, seed), (), sources[0].reference, {}, ())


def _deadline(minutes: float | None) -> float | None:
    """When timing must end, so that the time is enough to solve for the rows as well."""
    if minutes is None:
        return None
    if not 0 < minutes < float("inf"):
        raise InputError(f"minutes must be positive and finite, got {minutes:g}")
    return time.monotonic() + 60 * minutes * TIMING_SHARE


def _beside(stem: Path) -> Path:
    """The samples file of a table."""
    return stem.with_name(stem.name + ".samples.jsonl")


def _run(job: Job, stem: Path, table: LatencyTable | None, samples: Samples) -> None:
    """Make the visits that are left, and write the table."""
    started = time.time()
    floor, statistic = (None, None) if table is None else (table.reference_ms, table.statistic)
    apart: list[Visit] = []
    if job.plan.apart:
        visits, apart = new_visits(job, samples)
    elif job.sources:
        visits = visits_by_sittings(job, samples)
    else:
        visits = few_visits(job, samples, floor)
    times = settle(visits, job.rounds, job.protocol, statistic, floor)
    at, seconds = round(started), round(time.time() - started, 1)
    if job.plan.apart:
        whole = settle(apart, job.rounds, job.protocol, times.statistic)
        content = _content(job, times, whole, at, seconds)
    elif table is not None:
        content = _more_content(job, times, table.content, at, seconds)
    else:
        content = _adapted_content(job, times, at, seconds)
    write(stem, content)
    samples.finish()


def _existing(stem: Path, fresh: bool) -> LatencyTable | None:
    """The table that is there, unless it is to be measured afresh."""
    present = any(stem.with_name(stem.name + suffix).exists() for suffix in (".csv", ".json"))
    return LatencyTable.load(stem) if present and not fresh else None


def _verdict(job: Job, times: Times) -> Verdict:
    return verdict_of(times, job.rounds, job.protocol)


def _content(job: Job, times: Times, whole: Times, at: int, seconds: float) -> Content:
    """A new table: rows from `times`, calibration and clock from `whole`, the times of the networks apart."""
    plan, classes = job.plan, job.space.classes
    system = RowSystem.of(plan.archs, {})
    solved = system.solve(np.array([times.ms[arch.id] for arch in plan.archs]))
    apart = RowSystem.of(plan.apart, {})
    rows = {row.key: float(ms) for row, ms in zip(system.rows, solved, strict=True)}
    calibration = calibrate(
        apart,
        filled(rows, apart.rows),
        np.array([whole.ms[arch.id] for arch in plan.apart]),
        whole.moved,
    )
    verdict = worse(_verdict(job, times), _verdict(job, whole))
    networks = len(plan.archs) + len(plan.apart)
    return Content(
        space=job.space.name,
        classes=(classes,),
        target=job.target.name,
        fingerprint=fingerprint(job.target),
        protocol=asdict(job.protocol),
        statistic=times.statistic,
        calibration=calibration,
        reference=json.loads(plan.reference.to_json()),
        reference_ms=whole.reference_ms,
        verdict=verdict,
        measurements=(Measurement(at, seconds, job.rounds, job.seed, classes, networks, verdict),),
        rows=_row_times(job, system, times, replace(calibration, offset=0.0, scale=1.0)),
        remains_of=_remains_of(job.space),
    )


def _remains_of(space: Measurable) -> RemainsOf | None:
    """What a table keeps of a space that has no name by which it is opened."""
    kept = kept_of(space)
    return None if kept is None else RemainsOf(kept[0].to_json(), kept[1])


def _more_content(job: Job, times: Times, old: Content, at: int, seconds: float) -> Content:
    """The old table with the rows that it lacked, at its clock and with its calibration."""
    plan, verdict, classes = job.plan, _verdict(job, times), job.space.classes
    system = RowSystem.of(plan.archs, {key: row.ms for key, row in plan.known.items()})
    as_predicted = replace(old.calibration, kind="", factor=1.0)  # what is added fits predictions as they are
    about = Measurement(at, seconds, job.rounds, job.seed, classes, len(plan.archs), verdict)
    return replace(
        old,
        classes=(*(c for c in old.classes if c != classes), classes),
        fingerprint=fingerprint(job.target),
        protocol=asdict(job.protocol),
        verdict=worse(old.verdict, verdict),
        measurements=(*old.measurements, about),
        rows={
            **plan.known,
            **_row_times(job, system, times, as_predicted, clock=old.reference_ms / times.reference_ms),
        },
        remains_of=_remains_of(job.space),
    )


def _adapted_content(job: Job, times: Times, at: int, seconds: float) -> Content:
    """A table of the rows of the job's sources, as the networks' times show them to be on the new target."""
    archs, classes = job.plan.archs, job.space.classes
    ms = np.array([times.ms[arch.id] for arch in archs])
    usual = usual_nets(job.space, job.seed)
    found = adapt(job.sources, archs, ms, times.noise_floor, usual, [len(times.kept[arch.id]) for arch in archs])
    first, *others = (Origin(one.path.name, one.content.sha256, one.content.target) for one in job.sources)
    how = Adaptation(
        table=first.table,
        sha256=first.sha256,
        target=first.target,
        nets=tuple(arch.id for arch in archs),
        factors=dict(found.factors),
        heldout_mape=found.calibration.heldout_mape,
        one_scale=found.one_scale,
        one_scale_heldout_mape=found.one_scale_mape,
        others=tuple(others),
    )
    verdict = of_adaptation(_verdict(job, times), how)
    known = dict.fromkeys(count for source in job.sources for count in source.content.classes if count != classes)
    return Content(
        space=job.space.name,
        classes=(*known, classes),
        target=job.target.name,
        fingerprint=fingerprint(job.target),
        protocol=asdict(job.protocol),
        statistic=times.statistic,
        calibration=found.calibration,
        reference=job.sources[0].content.reference,
        reference_ms=times.reference_ms,
        verdict=verdict,
        measurements=(Measurement(at, seconds, job.rounds, job.seed, classes, len(archs), verdict, how),),
        rows=found.rows,
        remains_of=_remains_of(job.space),
    )


def _row_times(
    job: Job, system: RowSystem, times: Times, calibration: Calibration, clock: float = 1.0
) -> dict[str, RowTime]:
    """The rows that were unknown, with their spread over visits drawn anew, as many as there are."""
    names = [arch.id for arch in job.plan.archs]
    factors = np.array([calibration.factor if row.op == calibration.kind else 1.0 for row in system.rows])

    def solve(ms: Mapping[str, float]) -> NDArray[np.float64]:
        measured = np.array([ms[name] for name in names]) * clock
        found: NDArray[np.float64] = factors * system.solve((measured - calibration.offset) / calibration.scale)
        return found

    rng = np.random.default_rng(job.seed)
    best, spread = solve(times.ms), np.array([solve(times.redrawn(rng)) for _ in range(RESAMPLED)])
    low, median, high = np.quantile(spread, (0.1, 0.5, 0.9), axis=0)
    mad = np.median(np.abs(spread - median), axis=0)
    visits = (system.counts > 0).T @ np.array([len(times.kept[name]) for name in names])
    return {
        row.key: RowTime(float(best[i]), float(median[i]), float(low[i]), float(high[i]), float(mad[i]), int(visits[i]))
        for i, row in enumerate(system.rows)
        if np.isnan(system.known[i])
    }
