"""`nas retrain`, from names and flags to accuracies on the test split."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nas.data import Data
from nas.data import load as load_data
from nas.evaluate import accuracy
from nas.networks import Named, network_named
from nas.processes import leads
from nas.runs import Run
from nas.tables import find_table, space_of
from nas.train.features import follow_features, mean_distance
from nas.train.loop import Recipe
from nas.train.retrain import load_network
from nas.train.retrain import retrain as run_retrain
from nas.train.teachers import feature_teacher, teacher_named
from nas.train.thresholds import Budget, budget_of, learn_thresholds
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["retrain_network"]


def retrain_network(
    name: str,
    dataset: str,
    recipe: Recipe,
    out: Path,
    *,
    weights: Path | None = None,
    teacher: str | None = None,
    teacher_weight: float | None = None,
    temperature: float | None = None,
    budget_ms: float | None = None,
    image_size: int | None = None,
    thresholds: bool = False,
    table: Path | None = None,
    target: str | None = None,
    target_cost: float | None = None,
    fresh_head: bool = False,
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas retrain`: accuracies on the test split, read once training is over; of an encoder the distance of its features from the teacher's.

    With `image_size` it is the network at that size, from the same weights. Those of training at several depths are on
    search-validation. With `thresholds`, the patches kept are learned too, against a budget in ms if there is a table or target;
    `target_cost` is that budget, by default what the network costs with the numbers of patches in its specs. An encoder follows an
    encoder's features, without labels, unless `fresh_head` gives it a classifier.

    Raises:
        InputError: no such network or teacher, an encoder without one, they do not fit the data, or what is set needs something that is not.
        BudgetError: thresholds cannot hold `target_cost`.
    """
    if leads():
        Run.check_free(out, resume=resume)
    _check_flags(
        thresholds,
        {"--table": table, "--target": target, "--target-cost": target_cost, "--foreign-table": foreign or None},
        teacher,
        {"--teacher-weight": teacher_weight, "--temperature": temperature},
    )
    named = network_named(name, budget_ms, weights)
    named = named if image_size is None else named.at(image_size)
    if fresh_head and not named.arch.encoder:
        raise InputError(f"--fresh-head is of an encoder, and {name} has a classifier; leave it out")
    if named.arch.encoder and not fresh_head:
        of_classes = {
            "--thresholds": thresholds or None,
            "--teacher-weight": teacher_weight,
            "--temperature": temperature,
        }
        guide_name = _encoders_teacher(name, teacher, recipe, of_classes)
        return _followed(named, dataset, recipe, out, guide_name, resume=resume)
    data = _training_data(dataset, named.arch.image_size, with_teacher=teacher is not None and not recipe.sides)
    named = named.seeing(data)
    if named.supernet is None:
        named = named.of_classes(data.classes, recipe.seed)
    if thresholds and temperature is None:
        temperature = 1.0  # AS-ViT's
    guide = None if teacher is None else teacher_named(teacher, data, teacher_weight, temperature)
    train: Callable[..., dict[str, Any]] = run_retrain
    if thresholds:
        train = partial(learn_thresholds, budget=_budget(named.arch, table, target, target_cost, foreign))
    elif named.arch.keeping(adaptive=False) != named.arch:
        raise InputError(f"network {named.arch.id} has thresholds, which need a budget to be trained; add --thresholds")
    start = named.start_weights(data, recipe.seed)
    summary = train(named.arch, data, recipe, out, start=start, teacher=guide, resume=resume)
    if not leads():  # of several processes, the first evaluates
        return {}
    own = data.at(named.arch.image_size)
    found: dict[str, Any] = {"test_acc": accuracy(load_network(out)[0], own, "test")}
    found["teacher_acc"] = None if guide is None else accuracy(guide.network, data, "test")
    more = {name: value for name, value in summary.items() if name not in ("val_acc", "weights")}
    return {**found, **more, "weights": str(out / "weights.safetensors")}


def _followed(named: Named, dataset: str, recipe: Recipe, out: Path, teacher: str, *, resume: bool) -> dict[str, Any]:
    """Train an encoder to give its teacher's features; the distance on the test split, read once training is over."""
    if named.arch.keeping(adaptive=False) != named.arch:
        raise InputError(
            f"encoder {named.arch.id} has thresholds, which are learned with labels; give it without them, as in `calibrated` of its run"
        )
    data = _training_data(dataset, named.arch.image_size, with_teacher=True, labels=False)
    named, guide = named.seeing(data), feature_teacher(teacher, data)
    start = named.start_weights(data, recipe.seed)
    follow_features(named.arch, data, recipe, out, guide, start=start, resume=resume)
    if not leads():  # of several processes, the first evaluates
        return {}
    distance = mean_distance(load_network(out)[0], guide.network, data, "test")
    return {
        "test_acc": None,
        "teacher_acc": None,
        "test_distance": distance,
        "weights": str(out / "weights.safetensors"),
    }


def _encoders_teacher(name: str, teacher: str | None, recipe: Recipe, of_classes: Mapping[str, float | None]) -> str:
    """The teacher of an encoder; refused are none, and flags of what an encoder does not have, where they are given."""
    if teacher is None:
        raise InputError(
            f"{name} is an encoder: name the one whose features it is to follow with --teacher, or give it a classifier of the data's "
            "classes with --fresh-head"
        )
    every = {**of_classes, "--sides": recipe.sides or None, "--mixed-depth": recipe.mixed_depth or None}
    given = [flag for flag, value in every.items() if value is not None]
    if given:
        raise InputError(f"{given[0]} is of networks with classes, and {name} is an encoder; leave it out")
    return teacher


def _check_flags(
    thresholds: bool, budget: dict[str, object], teacher: str | None, distillation: dict[str, object]
) -> None:
    """Refuse flags of a budget without thresholds, and of distillation without a teacher."""
    given = [flag for flag, value in budget.items() if value is not None]
    if given and not thresholds:
        raise InputError(f"{given[0]} is of the budget of thresholds; add --thresholds")
    given = [flag for flag, value in distillation.items() if value is not None]
    if given and teacher is None:
        raise InputError(f"{given[0]} is of the distillation; name its teacher with --teacher")


def _training_data(name: str, image_size: int, *, with_teacher: bool, labels: bool = True) -> Data:
    """The data at the network's size; for a teacher no smaller than they are by themselves, as the network's are resized then."""
    data = load_data(name, image_size=image_size, labels=labels)
    own = load_data(name, labels=labels).image_size if with_teacher else image_size
    return data.at(max(image_size, own))


def _budget(arch: Arch, table: Path | None, target: str | None, cost: float | None, foreign: bool) -> Budget:
    """`cost`, or that of the numbers of patches in the network's specs: in ms of a table, or of a target's, else in MACs."""
    if table is None and target is None:
        return budget_of(arch, target=cost)
    budget_of(arch)  # which refuses a network without locations before anything is measured
    prices = find_table(table, target, lambda: space_of(arch.keeping(adaptive=True)))
    prices.check_machine(foreign)
    return budget_of(arch, prices, cost)
