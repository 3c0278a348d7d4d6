"""Early exit: thresholds for a budget, images that leave, and the group of commands from training to files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch

from nas.cascade.bench import until_each
from nas.cascade.costs import until_macs
from nas.cascade.files import check_exits, export_exits
from nas.cascade.running import every_exit, run_early
from nas.cascade.thresholds import exits_taken, mean_cost, shares_of, solve, thresholds_for
from nas.cascade.training import load_cascade
from nas.cost import macs, params
from nas.data import DATASETS
from nas.describe import describe
from nas.errors import BudgetError
from nas.export import write_onnx
from nas.launch.export import export_network
from nas.networks import network_named
from nas.runs import Run, digest, read_arch, save_weights
from nas.target import Target
from nas.train.retrain import fresh_network
from search_spaces import Arch, Cascade, InputError, zoo
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position, Reuse
from search_spaces.cascade import CascadeNetwork, linked
from tests.cli.running import printed
from tests.nas.toy import toy

COSTS = np.array([1.0, 3.0, 7.0])


def vit(patch: int) -> Arch:
    block = MB3D(2, 8, 8, 2, residual="plain", bias=False)
    return Arch(32, 3, (Patch(16, patch), ClassToken(), Position(), block, block, Head(4, pool="token")))


@pytest.fixture
def confidences() -> Any:
    return np.random.default_rng(0).random((400, 3)).astype(np.float32)


def test_shares_are_a_geometric_series() -> None:
    np.testing.assert_allclose(shares_of(np.log(2), 3), np.array([1, 2, 4]) / 7)
    np.testing.assert_allclose(shares_of(0, 4), 0.25)
    assert shares_of(40, 3)[2] > 1 - 1e-9 and shares_of(-40, 3)[0] > 1 - 1e-9


def test_the_surest_of_those_that_are_left_leave(confidences: Any) -> None:
    thresholds = thresholds_for(confidences, np.array([0.25, 0.5, 0.25]))
    taken = exits_taken(confidences, thresholds)
    assert np.bincount(taken).tolist() == [100, 200, 100]
    assert confidences[taken == 0, 0].min() > confidences[taken > 0, 0].max()
    assert confidences[taken == 1, 1].min() > confidences[taken == 2, 1].max()
    assert exits_taken(confidences, np.zeros(2)).max() == 0 and exits_taken(confidences, np.ones(2)).min() == 2


@pytest.mark.parametrize("budget", [1.0, 1.5, 3.3, 6.9, 7.0, 100.0])
def test_budgets_are_held_and_used(confidences: Any, budget: float) -> None:
    cost = mean_cost(confidences, solve(confidences, COSTS, budget), COSTS)
    assert cost <= budget
    assert cost == pytest.approx(min(budget, 7), abs=0.05)


def test_images_that_are_equally_sure_do_not_break_a_budget() -> None:
    same = np.full((50, 3), 0.5, dtype=np.float32)
    assert mean_cost(same, solve(same, COSTS, 4), COSTS) <= 4


def test_what_is_below_the_first_exit_is_refused(confidences: Any) -> None:
    with pytest.raises(BudgetError, match=r"below the first exit's 1, the cheapest possible"):
        solve(confidences, COSTS, 0.5)


def test_images_leave_with_the_logits_of_their_exit() -> None:
    network = fresh_network(linked([vit(16), vit(8), vit(4)]), 0).eval()
    assert isinstance(network, CascadeNetwork)
    confidence, hits = every_exit(network, toy(64), "val")
    assert confidence.shape == hits.shape == (64, 3) and 0 < hits.mean() < 1
    thresholds = thresholds_for(confidence, np.array([0.3, 0.3, 0.4]))
    wanted = torch.from_numpy(exits_taken(confidence, thresholds))
    images = next(iter(toy(64).loader("val", 64)))[0]
    sizes: list[int] = []
    network.blocks[-1].register_forward_hook(lambda block, given, out: sizes.append(len(out)))
    with torch.no_grad():
        logits, taken = run_early(network, images, thresholds)
        every = torch.stack(network(images), 1)
    assert torch.equal(taken, wanted) and set(taken.tolist()) == {0, 1, 2}
    assert sizes == [int((taken == 2).sum()), 64], "who has left is in no later batch"
    torch.testing.assert_close(logits, every[torch.arange(64), taken], rtol=1e-4, atol=1e-5)
    assert set(run_early(network, images, np.zeros(2))[1].tolist()) == {0}
    with torch.no_grad():
        spoilt = run_early(network, torch.full_like(images[:3], float("nan")), np.zeros(2))[1]
    assert spoilt.tolist() == exits_taken(np.full((3, 3), np.nan), np.zeros(2)).tolist() == [2, 2, 2]


def nas(*words: object) -> Any:
    return printed("cascade", *words)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "toy", lambda path, image_size, seed: toy(512))


@pytest.mark.usefixtures("data")
def test_from_two_networks_to_files(tmp_path: Path) -> None:
    for patch in (16, 8):
        (tmp_path / f"{patch}.json").write_text(vit(patch).to_json())
    run, names = tmp_path / "run", (tmp_path / "16.json", tmp_path / "8.json")
    flags = ("--data", "toy", "--epochs", 4, "--batch-size", 16, "--lr", 1e-2, "--out", run)
    trained = nas("train", *names, *flags)
    assert len(trained["test_acc"]) == len(trained["val_acc"]) == 2 and max(trained["test_acc"]) > 0.33
    assert nas("train", *names, *flags, "--resume") == trained
    cascade = Arch.from_json((run / "arch.json").read_text())
    assert isinstance(cascade, Cascade) and cascade.stages[1].blocks[3].kind == "reuse"
    loaded = zoo.from_checkpoint(run / "weights.safetensors")
    assert loaded.arch == cascade and len(loaded(cascade.example())) == 2
    with pytest.raises(InputError, match="has no thresholds; run `nas cascade calibrate`"):
        nas("run", run, "--data", "toy")
    with pytest.raises(InputError, match="--budget-macs must be positive and finite, got -1"):
        nas("calibrate", run, "--data", "toy", "--budget-macs", -1)
    with pytest.raises(InputError, match="is a cascade, which has several exits"):
        network_named(str(run))

    first, both = macs(cascade.stages[0]), macs(cascade)
    budget = (first + both) / 2
    calibrated = nas("calibrate", run, "--data", "toy", "--budget-macs", budget)
    assert calibrated["costs"] == [first, both] and calibrated["val_cost"] == pytest.approx(budget, rel=0.02)
    assert sum(calibrated["shares"]) == 1 and calibrated["val_cost"] <= budget
    ran = nas("run", run, "--data", "toy", "--split", "val", "--batch", 16)
    assert ran["acc"] == pytest.approx(calibrated["val_acc"]) and ran["images"] == 512
    assert [own["share"] for own in ran["exits"]] == calibrated["shares"]
    with mock.patch("nas.cascade.bench.until_each", wraps=until_each) as visits:
        benched = nas("bench", run, "--data", "toy", "--batch", 300)
    assert [len(call.args[1]) for call in visits.call_args_list] == [300] * 27, "25, and two before they count"
    benched = nas("bench", run, "--data", "toy", "--batch", 16)
    assert benched["baseline_acc"] == trained["test_acc"][-1]
    assert min(benched[name] for name in ("throughput", "ideal_throughput", "baseline_throughput")) > 0
    early = nas("run", run, "--data", "toy", "--batch", 16)
    assert benched["acc"] == pytest.approx(early["acc"])
    for own, wanted in zip(benched["exits"], early["exits"], strict=True):
        assert own["share"] == wanted["share"] and own["acc"] == pytest.approx(wanted["acc"])
    mean = sum(own["share"] * own["ms"] for own in benched["exits"])
    assert benched["ideal_throughput"] == pytest.approx(1000 / mean)
    timed = nas("calibrate", run, "--data", "toy", "--budget-ms", 1000, "--batch", 300)
    assert timed["shares"] == [0, 1] and (timed["target"], timed["batch"]) == ("cpu-eager-fp32-b300-t1", 300)
    with pytest.raises(InputError, match="search-validation has 512 images, fewer than --batch 513"):
        nas("calibrate", run, "--data", "toy", "--budget-ms", 1000, "--batch", 513)
    whole = printed("evaluate", run, "--data", "toy")
    assert [own["acc"] for own in whole["exits"]] == pytest.approx(trained["test_acc"])
    assert whole["acc"] == whole["exits"][-1]["acc"] and whole["images"] == 512


@pytest.mark.usefixtures("data")
def test_a_checkpoint_is_calibrated_into_a_folder_that_runs(tmp_path: Path) -> None:
    arch = linked([vit(16), vit(8)])
    state = fresh_network(arch, 0).state_dict()
    save_weights(tmp_path / "cascade.safetensors", state, arch)
    flags = ("--data", "toy", "--budget-macs", sum(until_macs(arch)) / 2)
    with pytest.raises(InputError, match="pass --out, a folder for them and those of "):
        nas("calibrate", tmp_path / "cascade.safetensors", *flags)
    found = nas("calibrate", tmp_path / "cascade.safetensors", *flags, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "thresholds.json").read_text()) == found
    ran = nas("run", tmp_path / "run", "--data", "toy", "--split", "val", "--batch", 64)
    assert [own["share"] for own in ran["exits"]] == found["shares"] and ran["acc"] == pytest.approx(found["val_acc"])
    assert digest(load_cascade(tmp_path / "run")[0].state_dict()) == digest(state)
    more = (*flags[:-1], sum(until_macs(arch)))
    again = nas("calibrate", tmp_path / "cascade.safetensors", *more, "--out", tmp_path / "run")
    assert again["budget"] == more[-1] and json.loads((tmp_path / "run" / "thresholds.json").read_text()) == again
    (tmp_path / "arch.json").write_text(arch.to_json())
    save_weights(tmp_path / "other.safetensors", fresh_network(arch, 1).state_dict(), arch)
    for name, out, message in (
        (tmp_path / "other.safetensors", "run", "holds a run with start = .*; choose another --out"),
        (tmp_path / "arch.json", "none", "has no weights; give a checkpoint"),
        ("contours_vit", "none", "contours_vit has one exit; give a cascade"),
    ):
        with pytest.raises(InputError, match=message):
            nas("calibrate", name, *flags, "--out", tmp_path / out)
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(BudgetError):
            nas("calibrate", tmp_path / "other.safetensors", *flags[:-1], 1, "--out", tmp_path / name)
    assert not (tmp_path / "none").exists() and not [*(tmp_path / "empty").iterdir()]
    with pytest.raises(InputError, match="holds a run; choose another --out"):
        nas("export", tmp_path / "run", "--out", tmp_path / "run")


@pytest.mark.usefixtures("data")
def test_what_is_not_to_be_reused_is_not_and_one_name_is_a_cascade(tmp_path: Path) -> None:
    names = [tmp_path / "16.json", tmp_path / "8.json"]
    for name, patch in zip(names, (16, 8), strict=True):
        name.write_text(vit(patch).to_json())
    flags = ("--data", "toy", "--epochs", 1, "--batch-size", 256)
    nas("train", *names, *flags, "--no-relation-reuse", "--out", tmp_path / "features")
    cascade = read_arch(tmp_path / "features" / "arch.json")
    assert cascade == linked([vit(16), vit(8)], relations=False, joint=False)
    assert not any(isinstance(spec, Reuse) and spec.maps for spec in cascade.blocks)
    nas("train", *names, *flags, "--no-feature-reuse", "--opt", "lamb", "--out", tmp_path / "relations")
    found = read_arch(tmp_path / "relations" / "arch.json")
    assert found == linked([vit(16), vit(8)], features=False, joint=False) != cascade
    assert Run.open(tmp_path / "relations", "cascade").config["recipe"]["opt"] == "lamb"
    for number, name in enumerate(("features/arch.json", "features")):
        again = nas("train", tmp_path / name, *flags, "--out", tmp_path / f"again{number}")
        assert len(again["test_acc"]) == 2 and read_arch(tmp_path / f"again{number}" / "arch.json") == cascade


@pytest.mark.usefixtures("data")
def test_fresh_classifiers_are_the_seeds(tmp_path: Path) -> None:
    """Networks of other classes get new ones, whatever was drawn before."""
    arch = linked([vit(16), vit(8)]).with_classes(9)
    save_weights(tmp_path / "c.safetensors", fresh_network(arch, 0).state_dict(), arch)
    starts = []
    for seed in (0, 0, 1):
        torch.rand(seed + len(starts))
        out = tmp_path / f"run{len(starts)}"
        nas(
            "train",
            tmp_path / "c.safetensors",
            "--data",
            "toy",
            "--epochs",
            1,
            "--batch-size",
            256,
            "--seed",
            seed,
            "--out",
            out,
        )
        starts.append(Run.open(out).config["start"])
    assert starts[0] == starts[1] != starts[2]


@pytest.mark.usefixtures("data")
def test_what_cannot_be_trained_leaves_no_run_and_what_is_unfinished_says_so(tmp_path: Path) -> None:
    names = [tmp_path / "16.json", tmp_path / "8.json"]
    for name, patch in zip(names, (16, 8), strict=True):
        name.write_text(replace(vit(patch), channels=1).to_json())
    with pytest.raises(InputError, match="takes images of 1 channels, those of toy have 3"):
        nas("train", *names, "--data", "toy", "--batch-size", 16, "--out", tmp_path / "run")
    for name, patch in zip(names, (16, 8), strict=True):
        name.write_text(vit(patch).to_json())
    with pytest.raises(InputError, match="fewer than a batch of 1000; give a smaller --batch-size"):
        nas("train", *names, "--data", "toy", "--batch-size", 1000, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Run.start(tmp_path / "begun", "cascade", {}, resume=False)
    with pytest.raises(InputError, match="begun is unfinished; go on with --resume"):
        nas("calibrate", tmp_path / "begun", "--data", "toy", "--budget-macs", 1e6)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("features", "sizes", "patches"), [(True, (32, 32, 32), (16, 8, 4)), (False, (16, 32, 16), (8, 8, 2))]
)
def test_files_of_every_exit_in_a_row(
    features: bool, sizes: tuple[int, ...], patches: tuple[int, ...], tmp_path: Path
) -> None:
    """Stages of smaller images than the cascade's resize them in their files. A name without weights gets random ones."""
    stages = [replace(vit(patch), image_size=size) for patch, size in zip(patches, sizes, strict=True)]
    arch = linked(stages, features=features)
    run = Run.start(tmp_path / "run", "cascade", {}, resume=False)
    run.save_network(arch, fresh_network(arch, 0).state_dict())
    name = run.path if features else run.path / "arch.json"
    if features:
        found = nas("export", name, "--data", "toy", "--batch", 2, "--out", tmp_path / "files")
    else:
        found = export_network(str(name), "onnx", "cpu-ort-fp32-b2-t1", None, tmp_path / "files", 0)
    paths = [Path(one["path"]) for one in found["exits"]]
    assert [path.name for path in paths] == ["exit_0.onnx", "exit_1.onnx", "exit_2.onnx"]
    assert found["images"] == (512 if features else 32), "of the data, or random ones"
    assert found["path"] == str(paths[0].parent) and found["predicted_ms"] is None and found["peak_mb"] > 0
    assert found["max_abs_diff"] == max(one["max_abs_diff"] for one in found["exits"]) < 1e-4
    assert found["measured_ms"] == found["exits"][-1]["measured_ms"] > found["exits"][0]["measured_ms"] > 0
    graphs = [onnx.load(path).graph for path in paths]
    passed = ["tokens", "relations"] if features else ["relations"]  # what nobody reuses is not passed on
    assert [[one.name for one in graph.input] for graph in graphs[1:]] == [
        ["images", *(f"{name}_in" for name in passed)]
    ] * 2
    assert [[one.name for one in graph.output] for graph in graphs] == [*[["logits", *passed]] * 2, ["logits"]]
    images = [next(one for one in graph.input if one.name == "images") for graph in graphs]
    shapes = [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in images]
    assert shapes == [[2, 3, 32, 32]] * 3
    whole = printed("evaluate", tmp_path / "files", "--data", "toy")
    wanted = every_exit(network_named(str(name), cascades=True).with_weights(0), toy(512), "test")[1].mean(0)
    assert [own["acc"] for own in whole["exits"]] == pytest.approx(wanted.tolist(), abs=0.01) and whole["images"] == 512
    with pytest.raises(InputError, match="has files of a cascade with more exits; choose another --out"):
        export_exits(linked([vit(16), vit(8)]).build(), 1, tmp_path / "files")
    network = network_named(str(name), cascades=True).with_weights(0)
    assert isinstance(network, CascadeNetwork)
    target = Target.parse("cpu-ort-fp32-b2-t1")
    odd = check_exits(network, paths, torch.cat([arch.example(2, seed=1), arch.example(1)]), target)
    assert [one.images for one in odd] == [3, 3, 3] and all(one.top1_agreement == 1 for one in odd)
    if features:
        shutil.copytree(tmp_path / "files", tmp_path / "mixed")
        other = fresh_network(arch, 1)
        assert isinstance(other, CascadeNetwork)
        export_exits(other, 2, tmp_path / "others")
        for file, message in (
            (tmp_path / "others" / "exit_1.onnx", "exit_1.onnx is of another export than exit_0.onnx"),
            (None, "exit_1.onnx does not exist"),
            (
                write_onnx(vit(8).build(), (arch.example(),), tmp_path / "a.onnx", ["images"], ["logits"]),
                "does not say",
            ),
        ):
            wrong = tmp_path / "mixed" / ("exit_0.onnx" if "say" in message else "exit_1.onnx")
            wrong.unlink()
            if file is not None:
                shutil.copy(file, wrong)
            with pytest.raises(InputError, match=message):
                printed("evaluate", tmp_path / "mixed", "--data", "toy")
        for flags, message in (
            (("--weights", paths[0]), "holds its weights; leave out --weights"),
            (("--budget-ms", 1), "--budget-ms chooses a winner of a search run"),
        ):
            with pytest.raises(InputError, match=message):
                printed("evaluate", tmp_path / "files", "--data", "toy", *flags)
    with pytest.raises(InputError, match="gives other scores than the cascade, by nan, and was removed"):
        check_exits(network, paths, float("nan") * arch.example(2), target)
    assert not any(path.exists() for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize("prefixes", [(0, 1), (2, 0)])
def test_files_of_stages_with_other_numbers_of_leading_tokens(prefixes: tuple[int, int], tmp_path: Path) -> None:
    stages = []
    for patch, prefix in zip((16, 8), prefixes, strict=True):
        own = vit(patch).blocks
        leading = (ClassToken(prefix),) if prefix else ()
        head = Head(4, pool="token" if prefix else "mean")
        stages.append(replace(vit(patch), blocks=(own[0], *leading, *own[2:-1], head)))
    network = fresh_network(linked(stages), 0).eval()
    assert isinstance(network, CascadeNetwork)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())), alpha=0.2)
    paths = export_exits(network, 1, tmp_path)
    images = torch.cat([network.arch.example(seed=seed) for seed in range(3)])
    checked = check_exits(network, paths, images, Target.parse("cpu-ort-fp32-b1-t1"))
    assert max(one.max_abs_diff for one in checked) < 1e-4


def test_nas_export_refuses_what_files_of_exits_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text(linked([vit(16), vit(8)]).to_json())
    for target, how in (("cpu-ort-int8-b1-t1", {"int8": True}), ("cpu-ort-fp32-b1-t1", {"static": True})):
        with pytest.raises(InputError, match="is exported as an ONNX file of each exit, in float, for ONNX Runtime"):
            export_network(str(tmp_path / "arch.json"), "onnx", target, None, tmp_path / "no", 0, **how)
    assert not (tmp_path / "no").exists()


def test_costs_as_far_as_each_exit() -> None:
    arch = linked([vit(16), vit(8)])
    found = describe(arch)
    assert found["exits"] == [
        {"params": params(arch.stages[0]), "macs": macs(arch.stages[0]), "ms": None},
        {"params": params(arch), "macs": macs(arch), "ms": None},
    ]
    assert "exits" not in describe(vit(8))
    resizing = linked([replace(vit(8), image_size=16), vit(8)])
    found = describe(resizing)
    assert found["macs"] == found["macs_fvcore"] == found["macs_thop"] == macs(resizing), "resizing counts nothing"


def test_commands_of_one_exit_refuse_a_cascade() -> None:
    with pytest.raises(
        InputError, match=r"dvt_deit_small is a cascade, which has several exits.* nas cascade .*export"
    ):
        network_named("dvt_deit_small")
    assert network_named("dvt_deit_small", cascades=True).arch == zoo.arch("dvt_deit_small")


@pytest.mark.usefixtures("data")
def test_bad_input_says_what_is_wrong(tmp_path: Path) -> None:
    one = tmp_path / "one.json"
    one.write_text(vit(16).to_json())
    cascade = tmp_path / "cascade.json"
    cascade.write_text(linked([vit(16), vit(8)]).to_json())
    stage = tmp_path / "stage.json"
    stage.write_text(linked([vit(16), vit(8)]).stages[1].to_json())
    for words, message in (
        (("train", one, "--data", "toy"), "has one exit; name a cascade, or two networks"),
        (("train", cascade, "--data", "toy", "--no-feature-reuse"), "says itself what it reuses"),
        (("train", one, cascade, "--data", "toy"), "is a cascade, which has several exits"),
        (("train", stage, "--data", "toy"), "is a stage that reuses what the one before it knows"),
        (("run", tmp_path, "--data", "toy"), "holds no run"),
        (("calibrate", tmp_path, "--data", "toy"), "give one budget"),
        (("export", one), "has one exit; give it to nas export"),
        (("export", tmp_path), "holds no run"),
        (("export", cascade, "--weights", one), "--weights are of a network of the zoo"),
        (("export", "dvt_deit_small", "--weights", one), "is no checkpoint: its name should end in"),
    ):
        with pytest.raises(InputError, match=message):
            nas(*words)
