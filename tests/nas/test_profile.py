"""Where the milliseconds go, on networks whose rows take times that we made up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from nas.cost import params
from nas.profile import decompose, profile
from nas.profile_probes import Probes, make_probes, row_probes
from nas.solve import RowSystem
from nas.target import Target
from nas.visits import REFERENCE, Protocol, Visit
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, Embed, Head, Position, Row, Stem, TokenPrune
from tests.nas.test_cascade_costs import CASCADE
from tests.nas.test_export import MAPS, MOBILE, STREAMS, VIT
from tests.search_spaces.test_merging import reduced
from tests.search_spaces.test_token_prune import hybrid, vit

TARGET = "cpu-ort-fp32-b1-t1"
WIDE = MB3D(4, 8, 16, 4, residual="plain", bias=False)
LOOPED = MB3D(2, 4, 8, 2, loops=2, nll=1, residual="coefficients", recursion="external")
NETWORKS = {
    "hybrid": Arch(
        64, 3, (Stem(16), *[MB4D(4)] * 3, Embed(32), MB4D(2, mixer="depthwise"), *[MB3D(2, 8, 8)] * 2, Head(9))
    ),
    "external loops": Arch(32, 3, (Stem(16), Position(), LOOPED, LOOPED, Embed(32, "depthwise"), LOOPED, Head(5))),
    "groups and locations": hybrid((40, 20), False),
    "thresholds": vit((40, 20), True),
    "fused": reduced("fused"),
    "merged": reduced("merged", end="mean"),
    "forms of vit": VIT,
    "attention on maps": MAPS,
    "two streams": replace(STREAMS, blocks=(*STREAMS.blocks[:5], *STREAMS.blocks[4:])),
    "transformers in maps": MOBILE,
    "plain": Arch(32, 3, (Stem(32), *[WIDE] * 6, Head(4))),
}
EVERY: dict[str, Arch] = {**NETWORKS, "cascade": CASCADE}
Truth = Callable[[Row, int], float]  # a row's milliseconds, told by it and its multiply-accumulates


def by_work(row: Row, work: int) -> float:
    return 0.01 + 1e-7 * work


def by_chance(row: Row, work: int) -> float:
    return float(np.random.default_rng(list(row.key.encode())).uniform(0.01, 0.2))


def in_tiles(row: Row, work: int) -> float:
    """FFNs take what the next multiple of 128 hidden channels takes."""
    hidden = dict(row.dims).get("hidden")
    return by_work(row, work if hidden is None else round(work * 128 * ceil(hidden / 128) / hidden))


def row_times(archs: Sequence[Arch], truth: Truth) -> dict[Row, float]:
    """Milliseconds of each row of these networks."""
    rows: dict[Row, float] = {}
    for spec, state in {step for arch in archs for step in arch.steps()}:
        for row, work in zip(spec.rows(state), spec.row_macs(state), strict=True):
            assert work is not None
            rows[row] = truth(row, work)
    return rows


def times(probes: Probes, truth: Truth) -> tuple[dict[str, float], dict[Row, float]]:
    """Milliseconds of each probe by id, and of each row."""
    rows = row_times(probes.archs, truth)
    return {arch.id: sum(rows[row] for row in arch.rows) for arch in probes.archs}, rows


@pytest.mark.parametrize("name", EVERY)
def test_where_time_follows_work_every_block_and_operator_is_found(name: str) -> None:
    arch = EVERY[name]
    probes = make_probes(arch)
    ms, rows = times(probes, by_work)
    found = decompose(probes, ms)
    assert found["total_ms"] == pytest.approx(found["measured_ms"], rel=1e-3) and found["measured_ms"] == ms[arch.id]
    assert sum(block["share"] for block in found["blocks"]) == pytest.approx(1)
    for block, (spec, state) in zip(found["blocks"], arch.steps(), strict=True):
        assert block["ms"] == pytest.approx(sum(rows[row] for row in spec.rows(state)), rel=0.02), block["name"]
        assert block["macs"] == spec.macs(state) == sum(part["macs"] for part in block["operators"])
        assert block["gmacs_per_s"] == pytest.approx(block["macs"] / block["ms"] / 1e6) if block["macs"] else True
    for operator in found["operators"]:
        own = [row for row in arch.rows if row.op == operator["name"]]
        assert operator["count"] == len(own)
        assert operator["ms"] == pytest.approx(sum(rows[row] for row in own), rel=0.02), operator["name"]
    assert found["macs"] == sum(operator["macs"] for operator in found["operators"])


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_that_can_be_repeated_are_found_whatever_they_take(name: str) -> None:
    probes = make_probes(NETWORKS[name], plateau=False)
    ms, rows = times(probes, by_chance)
    found = decompose(probes, ms)
    assert found["difference"] == pytest.approx(0, abs=5e-3)
    repeated = 0
    for block, (spec, state), chain in zip(found["blocks"], probes.arch.steps(), probes.chain_of, strict=True):
        if chain is not None and spec.rows(state) == probes.chains[chain].rows:
            assert block["ms"] == pytest.approx(sum(rows[row] for row in spec.rows(state)), rel=0.02), block["name"]
            repeated += 1
        assert block["plateau"] is None and block["smaller"] == []
    assert repeated >= 2


def test_a_plateau_is_found_and_named_with_its_evidence() -> None:
    """160 hidden channels take what 256 take, 128 take half; heads take what they compute."""
    arch = replace(NETWORKS["plain"], blocks=(Stem(32), *[replace(WIDE, ratio=5)] * 6, Head(4)))
    probes = make_probes(arch)
    found = decompose(probes, times(probes, in_tiles)[0])
    flat = {cut["what"]: cut["plateau"] for cut in found["smaller"]}
    assert flat["FFN width 160 → 140"] and not flat["FFN width 160 → 120"] and not flat["heads 4 → 3"]
    assert [block["plateau"] for block in found["blocks"]] == [None, *[True] * 6, None]
    assert all(cut["blocks"] in ("1", "2 3 4 5 6", "1 2 3 4 5 6") for cut in found["smaller"])
    cut = next(cut for cut in found["blocks"][1]["smaller"] if cut["plateau"])
    assert cut["macs_share"] < 0.96 and cut["ms_share"] == pytest.approx(1, abs=1e-6)


def test_a_block_whose_time_falls_with_its_work_is_on_no_plateau() -> None:
    probes = make_probes(NETWORKS["plain"])
    found = decompose(probes, times(probes, by_work)[0])
    assert len(found["smaller"]) >= 4
    for cut in found["smaller"]:
        assert not cut["plateau"] and cut["ms_share"] < 1 - 0.5 * (1 - cut["macs_share"]), cut


def noisy(ms: Mapping[str, float], share: float) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [{name: t * (1 + rng.normal(0, share)) for name, t in ms.items()} for _ in range(30)]


def test_noise_widens_the_bands_and_what_it_may_explain_is_no_plateau() -> None:
    arch = replace(NETWORKS["plain"], blocks=(Stem(32), *[replace(WIDE, ratio=5)] * 6, Head(4)))
    probes = make_probes(arch)
    ms, _ = times(probes, in_tiles)
    calm, loud = (decompose(probes, ms, noisy(ms, share)) for share in (0.001, 0.1))
    assert [block["ms"] for block in calm["blocks"]] == [block["ms"] for block in loud["blocks"]]
    for one, other in zip(calm["blocks"], loud["blocks"], strict=True):
        assert one["low"] <= one["ms"] <= one["high"]
        assert other["high"] - other["low"] > one["high"] - one["low"]
    assert calm["blocks"][1]["plateau"] and not loud["blocks"][1]["plateau"]
    floor = decompose(probes, ms, (), 0.05)
    assert not floor["blocks"][1]["plateau"], "few visits may agree by chance"
    for one, other in zip(floor["smaller"], loud["smaller"], strict=True):
        assert (
            one["high"] - one["ms_share"] == pytest.approx(one["ms_share"] - one["low"])
            and one["low"] < other["ms_share"] - 0.04
        )


@pytest.mark.parametrize("name", ["hybrid", "plain"])
def test_what_noise_leaves_open_follows_the_work(name: str) -> None:
    """Two per cent of noise, over six draws of it: told of it, the solve is nearer to what every block takes."""
    probes = make_probes(NETWORKS[name], plateau=False)
    ms, rows = times(probes, by_work)
    truth = np.array([sum(rows[row] for row in spec.rows(state)) for spec, state in probes.arch.steps()])
    errors: dict[float, list[float]] = {0.0: [], 0.02: []}
    for drawn in noisy(ms, 0.02)[:6]:
        for noise, found in errors.items():
            blocks = decompose(probes, drawn, (), noise)["blocks"]
            found.append(float(np.abs(np.array([block["ms"] for block in blocks]) / truth - 1).mean()))
    assert np.mean(errors[0.02]) < 0.9 * np.mean(errors[0.0])


def test_times_that_do_not_add_up_show() -> None:
    """A whole network that is slower than its parts."""
    probes = make_probes(NETWORKS["plain"], plateau=False)
    ms, _ = times(probes, by_work)
    assert decompose(probes, ms)["misfit"] < 1e-3
    found = decompose(probes, {**ms, probes.arch.id: 1.5 * ms[probes.arch.id]})
    assert found["difference"] < -0.1 and found["misfit"] > 0.01
    assert sum(block["ms"] for block in found["blocks"]) == pytest.approx(found["total_ms"])


def visited(archs: Sequence[Arch], ms: Mapping[str, float], reference_ms: float, rounds: int) -> list[Visit]:
    """Visits that find exactly these times."""
    names = [name for probe in archs for name in (REFERENCE, probe.id)] * rounds
    return [
        Visit(0, order // (2 * len(archs)), order, name, 0.0, (ms.get(name, reference_ms),) * 5)
        for order, name in enumerate(names)
    ]


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_a_profile_times_every_probe_beside_the_skeleton(
    slower: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so where the whole takes longer than its parts."""
    arch = NETWORKS["hybrid"]
    probes, asked = make_probes(arch), list[tuple[int, int]]()
    ms, _ = times(probes, by_work)
    ms[arch.id] *= slower

    def timed(
        archs: Sequence[Arch], reference: Arch, target: Target, *, rounds: int, seed: int, protocol: Protocol
    ) -> list[Visit]:
        asked.append((rounds, seed))
        assert protocol.enough(4) >= 2, "one visit tells no band"
        assert tuple(archs) == probes.archs and reference == probes.skeleton and target.name == TARGET
        return visited(archs, ms, ms[reference.id], rounds)

    monkeypatch.setattr("nas.profile.time_sessions", timed)
    monkeypatch.setattr("nas.profile.peak_mb", lambda archs, target: [7.0 for _ in archs])
    monkeypatch.setattr("nas.profile.UNSURE", 0.005)
    found = profile(arch, Target.parse(TARGET), rounds=5, seed=3)
    assert asked == [(5, 3)] and found["measured_ms"] == pytest.approx(ms[arch.id])
    assert found["peak_mb"] == 7 and found["weights_mb"] == 4e-6 * params(arch)
    assert found["networks"] == len(probes.archs) and found["noise_floor"] == found["disturbed"] == 0
    for block in found["blocks"]:
        assert block["low"] == pytest.approx(block["ms"]) == pytest.approx(block["high"])
    assert ("quieter machine" in capsys.readouterr().err) == (slower > 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_probes_leave_every_other_block_as_it_is(name: str) -> None:
    """What is dropped stays dropped, groups and loops stay: no row but those of narrower blocks and of heads is new."""
    arch = NETWORKS[name]
    probes = make_probes(arch, plateau=False)
    known = set(arch.rows)
    assert set(probes.skeleton.rows) == known, "each different block is there"
    for probe in probes.parts:
        assert {row.op for row in probe.rows} <= {row.op for row in known} | {"head", "head.map"}
        if set(probe.rows) <= known:
            assert len(probe.rows) > len(arch.rows), "more copies"
    for chain in probes.chains:
        assert set(chain.arch.rows[:-1]) <= known
        assert chain.arch.rows[-1 - len(chain.rows) : -1] == chain.rows
        assert [spec for spec in chain.arch.blocks if isinstance(spec, TokenPrune)] == [
            spec for spec in arch.blocks if isinstance(spec, TokenPrune)
        ][: len(chain.arch.locations)]


def test_published_networks_take_few_probes() -> None:
    counts = {name: len(make_probes(zoo.arch(name)).archs) for name in ("deit_tiny_patch16_224", "efficientformer_l1")}
    assert counts["deit_tiny_patch16_224"] <= 20 and counts["efficientformer_l1"] <= 45, counts


def test_equal_blocks_with_unequal_inputs_share_a_chain() -> None:
    """The first 3D block lays out the map as tokens; a copy of it does not."""
    arch = NETWORKS["hybrid"]
    probes = make_probes(arch)
    first = next(i for i, spec in enumerate(arch.blocks) if isinstance(spec, MB3D))
    assert probes.chain_of[first] == probes.chain_of[first + 1] is not None
    assert probes.chain_of[0] is None and probes.chain_of[-1] is None
    assert arch.steps()[first][0].rows(arch.states[first])[0].op == "flatten"


@pytest.mark.parametrize("truth", [by_work, by_chance])
@pytest.mark.parametrize("name", NETWORKS)
def test_short_networks_tell_what_a_whole_one_takes(name: str, truth: Truth) -> None:
    """Where rows come in no other company, a head of one class behind them takes some of a millisecond that we made up at random."""
    arch = NETWORKS[name]
    probes = row_probes(arch)
    rows = row_times([arch, *probes], truth)
    system = RowSystem.of(probes, {})
    solved = system.solve(np.array([sum(rows[row] for row in probe.rows) for probe in probes]))
    found = dict(zip(system.rows, solved, strict=True))
    known = 0.02 if truth is by_work else 0.25
    assert sum(found[row] for row in arch.rows) == pytest.approx(sum(rows[row] for row in arch.rows), rel=known)


def test_no_probe_of_a_published_network_s_rows_is_all_of_it() -> None:
    """Behind the last pruning location of AS-ViT's stands much of it: what is dropped there depends on those before."""
    for name, share in {
        "efficientformer_l1": 0.5,
        "sret_t": 0.7,
        "asvit_deit_tiny": 0.9,
        "mobile_former_96m": 0.9,
    }.items():
        arch = zoo.arch(name).keeping(adaptive=False)
        probes, rows = row_probes(arch), {*arch.rows}
        assert rows <= {row for probe in probes for row in probe.rows}, name
        assert max(len({*probe.rows} & rows) for probe in probes) <= share * len(rows), name
        assert len(probes) <= 25, name
