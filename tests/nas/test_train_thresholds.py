"""Thresholds learned with the weights: against a budget that holds, from the dense network's scores, the same after a kill."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor

from compress import calibrate, counts_of, thresholds_of
from compress.token_losses import Curve
from nas.cost import macs
from nas.data import DATASETS
from nas.errors import BudgetError
from nas.evaluate import accuracy, calibration_batches
from nas.runs import Run, load_weights
from nas.train import thresholds as learning
from nas.train.loop import Objective, Recipe, _groups, _schedule, fit
from nas.train.retrain import Teacher, fresh_network, load_network, supervised
from nas.train.thresholds import THRESHOLD_LR, Budget, budget_of, dense_teacher, learn_thresholds, token_pruning
from search_spaces import Arch, InputError, zoo
from search_spaces.blocks import MB3D, Head, Position, Stem, TokenPrune
from search_spaces.tokens import Chosen
from tests.cli.running import printed
from tests.nas.toy import toy, toy_space
from tests.search_spaces.test_token_prune import hybrid, vit

RECIPE = Recipe(epochs=3, batch_size=32, lr=1e-3, augment=False)
BLOCK = MB3D(2, 8, 8, 2, layer_scale=0.5)
ARCH = Arch(
    32, 3, (Stem(16), Position(), BLOCK, TokenPrune(40), BLOCK, TokenPrune(16), BLOCK, Head(4))
)  # 64 patches that know where they lie


class Clock:
    """Prices that are known: a millisecond for every patch that is kept, and one more."""

    def curve(self, arch: Arch) -> Curve:
        assert arch.keeping(adaptive=True) == arch, "thresholds have rows of their own"
        return lambda counts: sum(counts, torch.ones_like(counts[0]))

    def check_machine(self, foreign: bool) -> None:
        if not foreign:
            raise InputError("measured on another machine")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a dense network that tells the toy's classes apart."""
    dense = ARCH.keeping((64, 64))
    network = fresh_network(dense, 0)
    checkpoint = tmp_path_factory.mktemp("start") / "c.pt"
    fit(network, supervised(RECIPE, None), toy(512), replace(RECIPE, epochs=10, lr=1e-2), checkpoint, "start")
    assert accuracy(network, toy(), "val") > 0.9
    return network.state_dict()


def test_the_budget_holds_and_the_network_still_knows_its_classes(start: dict[str, Tensor], tmp_path: Path) -> None:
    budget = budget_of(ARCH)
    found = learn_thresholds(ARCH, toy(), RECIPE, tmp_path / "r", budget, start=start)
    network, arch, run = load_network(tmp_path / "r")
    assert found["val_acc"] == accuracy(network, toy(), "val") > 0.8
    assert found["target_cost"] == macs(ARCH) < found["dense_cost"] == macs(ARCH.keeping((64, 64)))
    assert found["held_cost"] <= found["target_cost"] and found["cost_unit"] == "MACs"
    assert found["thresholds"] == [float(one.detach()) for one in thresholds_of(network, arch)]
    counts = counts_of(network, list(toy().loader("val", 64))).double()
    costs = budget.curve([*counts.T.contiguous()])
    assert found["kept"] == counts.mean(0).tolist()
    assert found["mean_cost"] == pytest.approx(float(costs.mean()))
    assert found["p95_cost"] == pytest.approx(float(costs.quantile(0.95))) and found["p95_cost"] > found["mean_cost"]
    own = counts_of(network, calibration_batches(toy(), 0)).double().mean(0)
    assert arch == ARCH.keeping([round(mean) for mean in own.tolist()], adaptive=True)
    assert run.config["teacher"] == dense_teacher(ARCH, start, toy()).described()
    assert run.config["budget"] == budget.described()


def test_training_moves_the_costs_to_a_budget_in_milliseconds(start: dict[str, Tensor], tmp_path: Path) -> None:
    """Before anything is held: from far above the target, the masks' mean cost comes down to it."""
    budget = budget_of(ARCH, Clock(), target=40.0)
    assert (budget.unit, budget.dense, budget_of(ARCH, Clock()).target) == ("ms", 129, 57)
    reached: list[float] = []

    def watched(*given: Any) -> Objective:
        objective = token_pruning(*given)

        def losses(model: Any, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
            trace: list[Chosen] = []
            with torch.no_grad():
                model(images, trace)
            reached.append(float(budget.curve([one.counts for one in trace]).mean()))
            yield from objective(model, images, labels, step)

        return losses

    with patch.object(learning, "token_pruning", watched):
        recipe = replace(RECIPE, epochs=12, warmup=0.0)
        found = learn_thresholds(ARCH, toy(), recipe, tmp_path / "r", budget, start=start)
    assert sum(reached[:3]) / 3 > 48 and sum(reached[-8:]) / 8 == pytest.approx(40, abs=4)
    assert found["held_cost"] <= 40 and found["cost_unit"] == "ms" and found["val_acc"] > 0.8


def test_the_loss_is_of_labels_budget_and_teacher(start: dict[str, Tensor]) -> None:
    arch = ARCH.keeping(adaptive=True)
    network = fresh_network(arch, 0)
    network.load_state_dict({**network.state_dict(), **start})
    calibrate(network, arch, calibration_batches(toy(), 0))
    images, labels = toy(32).tensors("train").tensors
    budget, teacher, trace = budget_of(ARCH), dense_teacher(ARCH, start, toy()), list[Chosen]()
    network.train()
    logits = network(images, trace)
    task = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    excess = abs(float(budget.curve([one.counts.detach() for one in trace]).mean()) - budget.target) / budget.dense
    guide = teacher.network(images)
    likeness = (guide.softmax(1) * (guide.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    for given, extra in ((None, 0.0), (teacher, 0.5 * likeness), (replace(teacher, weight=0.2), 0.2 * likeness)):
        (loss,) = token_pruning(arch, RECIPE, budget, given)(network, images, labels, 0)
        torch.testing.assert_close(loss, task + 9 * excess + extra)


@pytest.mark.parametrize("make", [hybrid, vit])
def test_the_teacher_is_the_dense_network_of_the_same_weights(make: Any) -> None:
    arch: Arch = make((40, 16), True)
    network = fresh_network(arch, 0).eval()
    for threshold in thresholds_of(network, arch):
        torch.nn.init.constant_(threshold, -1.0)
    teacher = dense_teacher(arch, network.state_dict(), toy())
    assert not teacher.network.training
    with torch.no_grad():
        torch.testing.assert_close(teacher.scores(arch.example(3), RECIPE, 0), network(arch.example(3)))


def test_thresholds_have_a_rate_of_their_own_and_no_decay() -> None:
    network = fresh_network(ARCH.keeping(adaptive=True), 0)
    names = [f"blocks.{place}.threshold" for place in ARCH.locations]
    recipe = replace(RECIPE, epochs=10, warmup=0.0, weight_decay=0.1)
    groups = _groups(network, recipe, dict.fromkeys(names, THRESHOLD_LR))
    optimizer = create_optimizer_v2(groups, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = _schedule(optimizer, recipe, 80)
    of = {id(part): group for group in optimizer.param_groups for part in group["params"]}
    assert len(of) == len(list(network.parameters()))
    for step, share in ((0, 1.0), (40, 0.505), (80, 0.01)):
        schedule.step_update(step)
        for name, part in network.named_parameters():
            rate = THRESHOLD_LR if name in names else recipe.lr
            assert of[id(part)]["lr"] == pytest.approx(share * rate), name
            assert of[id(part)]["weight_decay"] == (0.1 if part.ndim > 1 and not name.endswith("bias") else 0.0), name


def test_without_rates_the_groups_are_those_of_timm() -> None:
    network = fresh_network(toy_space().largest, 0)
    own, timms = (
        create_optimizer_v2(given, "adamw", lr=1.0, weight_decay=0.05).param_groups
        for given in (_groups(network, RECIPE, {}), network)
    )
    assert [{**group, "params": list(map(id, group["params"]))} for group in own] == [
        {**group, "params": list(map(id, group["params"]))} for group in timms
    ]


@pytest.mark.parametrize("last", [3, 12])
def test_a_killed_training_ends_with_the_same_weights_and_thresholds(
    last: int, start: dict[str, Tensor], tmp_path: Path
) -> None:
    """Before the first checkpoint, and after it."""

    def train(folder: str, budget: Budget, resume: bool) -> None:
        learn_thresholds(ARCH, toy(), RECIPE, tmp_path / folder, budget, start=start, resume=resume)

    def dying(*given: Any) -> Objective:
        objective = token_pruning(*given)

        def losses(model: Any, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
            if step == last:
                raise KeyboardInterrupt
            yield from objective(model, images, labels, step)

        return losses

    budget = budget_of(ARCH)
    train("whole", budget, False)
    with patch.object(learning, "token_pruning", dying), pytest.raises(KeyboardInterrupt):
        train("killed", budget, False)
    assert (tmp_path / "killed" / "checkpoint.pt").exists() == (last > 8)
    train("killed", budget, True)
    whole, resumed = (load_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and len([name for name in whole if name.endswith("threshold")]) == 2
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    summaries = [{**(Run.open(tmp_path / name).summary or {}), "weights": ""} for name in ("whole", "killed")]
    assert summaries[0] == summaries[1]


def test_fresh_weights_have_no_teacher_unless_one_is_named(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    for name, teacher in (("none", None), ("named", Teacher(fresh_network(ARCH, 1), 4, temperature=1.0))):
        found = learn_thresholds(ARCH, toy(64), recipe, tmp_path / name, budget_of(ARCH), teacher=teacher)
        assert Run.open(tmp_path / name).config["teacher"] == (None if teacher is None else teacher.described())
        assert found["held_cost"] <= found["target_cost"]


def test_what_cannot_be_learned_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pruning location that could have a threshold; give one with token_prune"):
        budget_of(zoo.arch("deit_tiny_patch16_224"))
    for target in (0.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="a budget must be positive and finite, got"):
            budget_of(ARCH, Clock(), target)
    with pytest.raises(BudgetError, match=r"3 ms with one patch of each image, more than the budget of 2"):
        budget_of(ARCH, Clock(), 2.0)
    with pytest.raises(BudgetError, match="with one patch of each image, more than the budget of 1"):
        nas(tmp_path, ARCH, "--thresholds", "--target-cost", "1")
    (tmp_path / "a.json").unlink()
    with pytest.raises(
        InputError, match="takes 129 ms with every patch kept, less than the budget of 130: give a smaller one"
    ):
        budget_of(ARCH, Clock(), 130.0)
    for recipe in (replace(RECIPE, sides=(32, 64)), replace(RECIPE, mixed_depth=True)):
        with pytest.raises(InputError, match="leave out --sides and --mixed-depth"):
            learn_thresholds(ARCH, toy(), recipe, tmp_path / "r", budget_of(ARCH))
    with pytest.raises(InputError, match="of 4 classes"):
        learn_thresholds(
            ARCH.with_classes(4), replace(toy(), class_names=("a",)), RECIPE, tmp_path / "r", budget_of(ARCH)
        )
    assert not list(tmp_path.iterdir())


def nas(folder: Path, arch: Arch, *flags: str) -> dict[str, Any]:
    """What `nas retrain` of an architecture prints; raises what it raises."""
    (folder / "a.json").write_text(arch.to_json())
    words = ("retrain", folder / "a.json", "--data", "toy", "--epochs", 1, "--batch-size", 32, "--out", folder / "r")
    with patch.dict(DATASETS, {"toy": lambda path, image_size, seed: toy(64)}):
        found: dict[str, Any] = printed(*words, *flags)
    return found


def test_the_command_says_what_is_kept_and_what_it_costs(tmp_path: Path) -> None:
    found = nas(tmp_path, ARCH, "--thresholds")
    assert found["target_cost"] == macs(ARCH) and found["cost_unit"] == "MACs"
    assert len(found["kept"]) == len(found["thresholds"]) == 2
    assert found["teacher_acc"] is None and Path(found["weights"]).is_file()
    again = nas(tmp_path, ARCH, "--thresholds", "--resume")
    assert again == found
    assert load_network(tmp_path / "r")[1].keeping((40, 16), adaptive=False) == ARCH


def test_the_command_takes_the_price_of_a_table(tmp_path: Path) -> None:
    with patch("nas.launch.retrain.find_table", lambda table, target, space: Clock() if target == "here" else None):
        with pytest.raises(InputError, match="another machine"):
            nas(tmp_path, ARCH, "--thresholds", "--target", "here")
        found = nas(tmp_path, ARCH, "--thresholds", "--target", "here", "--foreign-table")
    assert (found["cost_unit"], found["target_cost"], found["dense_cost"]) == ("ms", 57, 129)


def test_the_command_holds_the_cost_that_it_is_given(tmp_path: Path) -> None:
    wanted = 0.8 * macs(ARCH)
    found = nas(tmp_path, ARCH, "--thresholds", "--target-cost", str(wanted))
    assert found["target_cost"] == wanted and found["held_cost"] <= wanted < macs(ARCH)
    with patch("nas.launch.retrain.find_table", lambda table, target, space: Clock()):
        (tmp_path / "ms").mkdir()
        flags = ("--thresholds", "--target", "here", "--foreign-table", "--target-cost", "40")
        assert nas(tmp_path / "ms", ARCH, *flags)["held_cost"] <= 40


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        (ARCH, ("--target-cost", "1e6"), "add --thresholds"),
        (ARCH, ("--target", "cpu-ort-fp32-b1-t1"), "add --thresholds"),
        (ARCH, ("--table", "t.csv"), "add --thresholds"),
        (ARCH, ("--foreign-table",), "add --thresholds"),
        (ARCH.keeping(adaptive=True), (), "need a budget to be trained; add --thresholds"),
        (toy_space().largest, ("--thresholds", "--target", "cpu-ort-fp32-b1-t1"), "no pruning location"),
    ],
)
def test_flags_that_miss_their_other_half_are_refused(
    arch: Arch, flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        nas(tmp_path, arch, *flags)
    assert not (tmp_path / "r").exists()
