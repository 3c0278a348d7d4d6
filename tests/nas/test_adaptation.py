"""Tables adapted from other targets' by the times of a few whole networks."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from scipy.stats import t

from benchmarks.adaptation_study import TARGETS, Floats, by_likeness, counted, left_out, priced, trial
from latency_tables import SHIPPED
from nas.adaptation import OCCASION, adapt, check_sources, choose_nets, usual_nets
from nas.calibration import banded
from nas.latency import LatencyTable
from nas.measure import measure_table, table_stem
from nas.plan import VALIDATION_STREAM, draw
from nas.row_prior import EXTRA, USUAL, Likeness, Prices, Prior
from nas.samples import Samples
from nas.sources import find_sources, known_tables
from nas.table_file import checksum, read, write
from nas.target import Target
from nas.visits import REFERENCE, Visit
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.spaces import SPACES
from tests.nas.test_measure import TARGET, lines, tiny, visits

OTHER = Target.parse("cpu-ort-fp32-b2-t1")
NETS = 20
SEEDS = range(3)


@pytest.fixture(scope="module")
def shipped() -> LatencyTable:
    return LatencyTable.load(next(SHIPPED.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.csv")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    return measure_table(tiny(), TARGET, tmp_path_factory.mktemp("source"), rounds=3)


@pytest.fixture(scope="module")
def adapted(source: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    return measure_table(tiny(), OTHER, tmp_path_factory.mktemp("adapted"), rounds=4, sources=[source], nets=8)


@pytest.mark.parametrize(
    "target",
    [
        "all but attention three times as fast",
        "a constant for each kind",
        "all rows gain, with a constant",
    ],
)
def test_twenty_networks_are_enough_for_nine_in_ten_others(shipped: LatencyTable, target: str) -> None:
    """Rows deviate from each rule by 5% of their own, timings by 1%; 40 unseen networks for each seed."""
    found = [trial(shipped, TARGETS[target], NETS, seed) for seed in SEEDS]
    mean = {figure: float(np.mean([one[figure] for one in found])) for figure in found[0]}
    assert mean["within_5pct"] >= 0.9 > 0.5 > mean["one_scale_within_5pct"]
    assert mean["within_band"] >= 0.85 and mean["heldout_mape"] < 0.05


@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_for_all_rows_is_never_better(shipped: LatencyTable, target: str) -> None:
    found = trial(shipped, TARGETS[target], NETS, seed=9)
    assert found["within_5pct"] > found["one_scale_within_5pct"] and found["mape"] < 0.05


def test_a_kind_that_gained_nothing_is_told_from_those_that_did(shipped: LatencyTable) -> None:
    nets = choose_nets([shipped], shipped.open_space(), NETS, seed=0)
    slow = {"mb4d.ffn": 1.0}
    new = {key: row.ms * slow.get(key.partition("@")[0], 1 / 3) for key, row in shipped.rows.items()}
    scale = shipped.content.calibration.scale
    ms = np.array([scale * sum(new[row.key] for row in arch.rows) for arch in nets])
    found = adapt([shipped], nets, ms, noise=0.0, usual=nets, visits=[5] * len(nets))
    assert found.factors["mb4d.ffn"] == pytest.approx(1.0, rel=0.05)
    assert all(found.factors[kind] == pytest.approx(1 / 3, rel=0.1) for kind in ("mb3d.ffn", "embed", "stem"))
    assert found.calibration.heldout_mape < 0.02 < found.one_scale_mape
    assert all(0 <= row.p10 <= row.ms <= row.p90 for row in found.rows.values())
    timed = {row.key for arch in nets for row in arch.rows}
    assert all((row.n > 0) == (key in timed) and row.n % 5 == 0 for key, row in found.rows.items())


def test_a_target_of_equal_speed_keeps_the_table_as_it_is(shipped: LatencyTable) -> None:
    nets = choose_nets([shipped], shipped.open_space(), NETS, seed=0)
    found = adapt([shipped], nets, np.array([2 * shipped.predict(arch).ms for arch in nets]), noise=0.0, usual=nets)
    scale = shipped.content.calibration.scale
    assert all(row.ms == pytest.approx(2 * scale * shipped.rows[key].ms) for key, row in found.rows.items())
    band = found.calibration
    assert band.heldout_mape < 1e-6
    day = float(t.ppf(0.95, NETS - 1)) * OCCASION
    assert (1 - band.low, band.high - 1) == pytest.approx((day, day), rel=1e-3), "what a day moves is all there is"


def test_the_band_is_that_of_usual_networks_not_of_those_that_were_timed(shipped: LatencyTable) -> None:
    """Those that are timed are unlike each other, and harder to tell by the others; errors held out are theirs."""
    space, rng = shipped.open_space(), np.random.default_rng(0)
    nets = choose_nets([shipped], space, NETS, seed=0)
    keys = tuple(shipped.rows)
    truth = np.array([row.ms for row in shipped.rows.values()]) * np.exp(rng.normal(0, 0.1, len(keys)))
    ms = counted(nets, keys) @ truth
    with patch("nas.adaptation.banded", wraps=banded) as given:
        found = adapt([shipped], nets, ms, 0.01, usual_nets(space, 0)).calibration
        hard = adapt([shipped], nets, ms, 0.01, choose_nets([shipped], space, NETS, seed=1)).calibration
    errors = given.call_args_list[0].args[0]
    as_timed = banded(errors, beyond=OCCASION**2, offset=found.offset)
    assert found.heldout_mape == hard.heldout_mape == as_timed.heldout_mape
    assert found.high - found.low < min(hard.high - hard.low, 0.9 * (as_timed.high - as_timed.low))


def test_constants_of_the_old_target_are_taken_off_and_no_row_is_below_zero(shipped: LatencyTable) -> None:
    nets = choose_nets([shipped], shipped.open_space(), NETS, seed=1)
    ms = np.array([sum(max(0.0, shipped.rows[row.key].ms - 0.008) for row in arch.rows) for arch in nets])
    found = adapt([shipped], nets, ms, noise=0.01, usual=nets)
    assert min(row.ms for row in found.rows.values()) >= 0
    assert found.calibration.heldout_mape < 0.5 * found.one_scale_mape


def test_the_networks_follow_from_the_seed_and_have_every_kind_of_row(shipped: LatencyTable) -> None:
    space = shipped.open_space()
    first, again, other = (choose_nets([shipped], space, NETS, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == NETS
    assert {row.op for arch in first for row in arch.rows} == {row.op for row in space.rows}
    assert len(set(first) & set(draw(space, 500, 0, VALIDATION_STREAM))) == 0


def test_what_cannot_be_adapted_is_refused_in_a_line(shipped: LatencyTable, tmp_path: Path) -> None:
    space = shipped.open_space()
    with pytest.raises(InputError, match="of the space hybrid_digits; --from needs one of vit_digits"):
        check_sources([shipped], SPACES["vit_digits"](classes=10))
    with pytest.raises(InputError, match=r"lacks 32 rows of hybrid_digits with 7 classes, such as head.*--classes"):
        check_sources([shipped], SPACES["hybrid_digits"](classes=7))
    static = LatencyTable.load(next(SHIPPED.glob("hybrid_digits--cpu-ort-int8-b1-t1--*.csv")))
    check_sources([static], SPACES["hybrid_digits"](classes=10), thresholds=False)
    with pytest.raises(InputError, match="lacks 8 rows of hybrid_digits"):
        check_sources([static], SPACES["hybrid_digits"](classes=10))
    with pytest.raises(InputError, match="--nets must be at least 8, got 7"):
        choose_nets([shipped], space, 7, seed=0)
    with pytest.raises(InputError, match=r"asks for 5000 networks, and \d+ were found in hybrid_digits"):
        measure_table(space, TARGET, tmp_path, sources=[shipped], nets=5000)
    assert not list(tmp_path.iterdir())


def test_an_adapted_table_is_a_table_that_says_so(adapted: LatencyTable, source: LatencyTable) -> None:
    assert adapted.path == table_stem(tiny(), OTHER, adapted.path.parent) and adapted.target == OTHER
    assert adapted.rows.keys() == source.rows.keys() and adapted.rows != source.rows
    assert adapted.reference == source.reference and adapted.reference_ms > 0
    assert all(0 < adapted.predict(arch).low < adapted.predict(arch).high < 50 for arch in tiny().probes())
    adapted.check_machine()
    (about,) = adapted.content.measurements
    assert about.adapted_from is not None
    assert about.adapted_from.sha256 == source.content.sha256 and len(about.adapted_from.nets) == 8
    assert about.adapted_from.factors.keys() == {row.op for row in tiny().rows}
    assert about.adapted_from.heldout_mape == pytest.approx(adapted.content.calibration.heldout_mape, abs=1e-6)
    assert adapted.adapted_from == source.path.name and source.adapted_from is None
    assert re.match(rf"adapted from {source.path.name} by 8 networks, held-out error", adapted.verdict["why"])


def test_a_table_measured_in_full_takes_an_adapted_ones_place(
    adapted: LatencyTable, source: LatencyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in adapted.path.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert measure_table(tiny(), OTHER, tmp_path, rounds=2) == LatencyTable.load(tmp_path / adapted.path.name)
    assert f"adapted from {source.path.name}; --fresh measures them" in capsys.readouterr().err
    measured = measure_table(tiny(), OTHER, tmp_path, rounds=2, fresh=True)
    assert measured.adapted_from is None and "adapted" not in measured.verdict["why"]
    more = tiny(classes=9)
    with pytest.raises(InputError, match="lacks 4 rows of tiny with 9 classes"):
        measure_table(more, OTHER, tmp_path, sources=[source])
    both = measure_table(more, TARGET, tmp_path / "both", rounds=2)
    with pytest.raises(InputError, match="is there and lacks rows of tiny; pass --fresh"):
        measure_table(more, OTHER, tmp_path, sources=[both], nets=8)


def test_a_killed_adaptation_goes_on_where_it_was(
    source: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, write = table_stem(tiny(), OTHER, tmp_path), Samples.append

    def killed(samples: Samples, visit: Visit) -> None:
        write(samples, visit)
        if visit.segment == 1 and visit.network != REFERENCE:  # in the second of two processes
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Samples, "append", killed)
        measure_table(tiny(), OTHER, tmp_path, rounds=4, sources=[source], nets=10)
    before = visits(stem)
    assert lines(stem)[0]["header"]["adapted_from"] == source.content.sha256 and len(before) > 20
    with pytest.raises(InputError, match="--resume"):
        measure_table(tiny(), OTHER, tmp_path, rounds=4, sources=[source], nets=10)
    with pytest.raises(InputError, match="networks differ"):
        measure_table(tiny(), OTHER, tmp_path, rounds=4, sources=[source], nets=11, resume=True)
    with pytest.raises(InputError, match="adapted_from"):
        measure_table(tiny(), OTHER, tmp_path, rounds=4, resume=True)
    table = measure_table(tiny(), OTHER, tmp_path, rounds=4, sources=[source], nets=10, resume=True)
    after = visits(stem)
    assert after[: len(before)] == before and len(set(after)) == len(after)
    timed = [(line["s"], line["n"]) for line in lines(stem) if "n" in line]
    first, second, third = ({name for s, name in timed if s == segment} - {REFERENCE} for segment in range(3))
    assert len(first) == len(third) == 5 and first.isdisjoint(third) and second <= third, "half in each process"
    assert table.adapted_from == source.path.name and lines(stem)[-1] == {"end": True}


@pytest.fixture(scope="module")
def tables() -> dict[str, LatencyTable]:
    """The shipped tables of a space, by runtime, type and threads."""
    found = [LatencyTable.load(path) for path in sorted(SHIPPED.glob("hybrid_digits--*.csv"))]
    return {table.content.target.removeprefix("cpu-").replace("-b1", ""): table for table in found}


def test_rows_that_several_tables_span_are_found_though_no_one_of_them_has_them(
    tables: dict[str, LatencyTable],
) -> None:
    """Between two tables, 3 to 7: each by itself has another's errors, both together next to none."""
    both = [tables["ort-fp32-t1"], tables["eager-fp32-t1"]]
    space = both[0].open_space()
    nets, unseen = choose_nets(both, space, NETS, seed=0), draw(space, 60, 0, VALIDATION_STREAM)

    def truth(archs: Sequence[Arch]) -> Floats:
        return 0.3 * priced(both[0], archs) + 0.7 * priced(both[1], archs) / 5

    def error(sources: Sequence[LatencyTable]) -> float:
        found = adapt(sources, nets, truth(nets), noise=0.0, usual=nets)
        rows = counted(unseen, tuple(found.rows)) @ np.array([row.ms for row in found.rows.values()])
        return float(np.abs((found.calibration.offset + rows) / truth(unseen) - 1).mean())

    together = error(both)
    assert together < 0.01 and 2 * together < min(error(both[:1]), error(both[1:]))


@pytest.mark.parametrize("target", ["openvino-fp32-t1", "ort-fp32-t1"])
def test_a_real_target_is_told_better_by_all_other_tables_than_by_the_most_alike(
    tables: dict[str, LatencyTable], target: str
) -> None:
    truth, every = tables[target], list(tables.values())
    unseen = draw(truth.open_space(), 100, 0, VALIDATION_STREAM)
    others = by_likeness(truth, every, unseen)
    together, alone = (left_out(truth, sources, unseen, NETS, seed=0) for sources in (others, others[:1]))
    assert truth not in others and len(others) == len(every) - 1
    assert together["within_5pct"] >= 0.8 and together["mape"] < 0.95 * alone["mape"]
    assert together["within_band"] >= 0.85


def test_what_a_table_lacks_is_told_by_the_others_at_its_speed(tables: dict[str, LatencyTable]) -> None:
    static, full = tables["ort-int8-t1"], tables["ort-fp32-t1"]
    lacking = [key for key in full.rows if key not in static.rows]
    prices = Prices.of([static, full])
    columns = [prices.keys.index(key) for key in lacking]
    shared = [prices.keys.index(key) for key in static.rows]
    speed = prices.ms[0, shared].sum() / prices.ms[1, shared].sum()
    assert lacking and prices.ms[0, columns] == pytest.approx(speed * prices.ms[1, columns])
    space = full.open_space()
    check_sources([static, full], space)
    with pytest.raises(InputError, match=r"int8.* and 1 more lack 8 rows of hybrid_digits"):
        check_sources([static, tables["openvino-fp32-t1"]], space)


def test_rows_are_alike_by_kind_by_shape_and_by_nothing_else(shipped: LatencyTable) -> None:
    keys = ("stem@64[cin=3,c=8]", "stem@16[cin=3,c=8]", "stem@64[cin=3,c=32]", "head@64[c=8]")
    alike = Likeness.of(keys)
    assert np.array_equal(alike.kind[:3, :3], np.ones((3, 3))) and not alike.kind[3, :3].any()
    assert alike.near[0, 0] == 1 and alike.near[0, 1] == pytest.approx(np.exp(-0.5)) == alike.near[0, 2]
    assert np.allclose(alike.shape[0], [1 / 3, 1 / 3, 0, 0, 0]) and np.allclose(alike.row[0], [1 / 3, 0, 0, 0, 0])
    assert not any(one[-EXTRA, :-EXTRA].any() for one in (alike.kind, alike.near, alike.shape, alike.constant))
    prices = Prices.of([shipped])
    archs = draw(shipped.open_space(), 5, 0, VALIDATION_STREAM)
    counts = prices.counts(archs)
    prior = Prior.of(prices, Likeness.of(prices.keys), counts, 3 * counts @ prices.ms[0])
    assert prior.start == pytest.approx(3 * prices.ms[0])
    covariances = prior.covariances(np.eye(len(prior.start)))
    assert np.allclose(np.diagonal(covariances, axis1=1, axis2=2), prior.squares())
    total = np.tensordot(USUAL.variances, covariances, 1)
    assert np.allclose(total, total.T) and np.linalg.eigvalsh(total).min() > -1e-9


def test_known_are_the_good_tables_of_the_space_but_the_targets_own(
    shipped: LatencyTable, tables: dict[str, LatencyTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.sources.tables_dir", lambda: tmp_path)
    space, target = shipped.open_space(), Target.parse("cpu-ort-fp32-b1-t1")
    own = table_stem(space, target, tmp_path).name
    expected = {table.path.name for table in tables.values()} - {own}
    assert {table.path.name for table in known_tables(space, target)} == expected
    another = shipped.path.name.replace("t1", "t3")
    write(tmp_path / another, replace(read(shipped.path), target="cpu-ort-fp32-b1-t3", reference_ms=1.0))
    assert {table.path.name for table in known_tables(space, target)} == expected | {another}
    bad = replace(read(shipped.path).verdict, good=False)
    write(tmp_path / another, replace(read(shipped.path), target="cpu-ort-fp32-b1-t3", verdict=bad))
    write(tmp_path / own, read(shipped.path))
    assert {table.path.name for table in known_tables(space, target)} == expected
    twice = find_sources([shipped.path, shipped.path.with_suffix(".csv"), Path("known")], space, target)
    assert twice[0] == shipped and {table.path.name for table in twice[1:]} == expected - {shipped.path.name}
    with pytest.raises(InputError, match="no table of another target is known for vit_digits"):
        find_sources([Path("known")], SPACES["vit_digits"](classes=10), target)


def test_a_table_from_several_says_which_and_one_from_before_them_loads(
    adapted: LatencyTable, source: LatencyTable, tmp_path: Path
) -> None:
    table = measure_table(tiny(), OTHER, tmp_path, rounds=4, sources=[source, adapted], nets=8)
    (about,) = table.content.measurements
    assert about.adapted_from is not None
    assert [one.sha256 for one in about.adapted_from.others] == [adapted.content.sha256]
    assert about.adapted_from.others[0].target == OTHER.name and about.adapted_from.table == source.path.name
    assert table.adapted_from == f"{source.path.name} and 1 more"
    assert re.match(rf"adapted from {source.path.name} and 1 more by 8 networks", table.verdict["why"])
    path = table.path.with_name(f"{table.path.name}.json")
    facts = json.loads(path.read_text())
    del facts["measurements"][0]["adapted_from"]["others"]
    path.write_text(json.dumps(facts | {"checksum": checksum(facts)}))
    assert LatencyTable.load(path).adapted_from == source.path.name
