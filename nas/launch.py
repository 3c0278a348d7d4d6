"""What the commands do, from names and folders to results."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas.data import SPLITS, Data, Split
from nas.data import load as load_data
from nas.evaluate import accuracy
from nas.export import check_onnx, export_onnx
from nas.latency import LatencyTable
from nas.networks import network_named
from nas.runtimes import RUNTIMES, Session
from nas.search.engine import Plan, run_search
from nas.search.score import Scorer
from nas.tables import find_table, measured_ms
from nas.target import Target
from nas.timing import time_networks
from nas.train.loop import Recipe
from nas.train.retrain import Teacher, load_network
from nas.train.retrain import retrain as run_retrain
from nas.train.supernet import load_supernet
from search_spaces.arch import Arch
from search_spaces.errors import InputError

__all__ = ["evaluate_network", "export_network", "retrain_network", "search_supernet"]

FORMATS = ("onnx",)


def search_supernet(
    supernet: Path,
    table: Path | None,
    target: str | None,
    plan: Plan,
    out: Path,
    *,
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas search`: winners of the budgets, their architecture files relative to `out`.

    Raises:
        InputError: no such supernet or table, or a table of another machine.
        BudgetError: a budget cannot be met.
    """
    model, run = load_supernet(supernet)
    prices = find_table(table, target, model.space)
    prices.check_machine(foreign)
    data = load_data(run.config["data"], image_size=model.space.largest.image_size)

    def measure(archs: Sequence[Arch]) -> list[float]:
        return measured_ms(archs, prices, plan.seed)

    config = {"supernet": str(supernet), "table": prices.id}
    return run_search(model.space, prices, Scorer(model, data, plan.seed), measure, plan, out, config, resume=resume)


def retrain_network(
    name: str, dataset: str, recipe: Recipe, out: Path, *, teacher: Path | None, budget_ms: float | None, resume: bool
) -> dict[str, Any]:
    """`nas retrain`: accuracies on the test split, read once training is over.

    Raises:
        InputError: no such network or teacher, or they do not fit the data.
    """
    named = network_named(name, budget_ms)
    data = load_data(dataset, image_size=named.arch.image_size)
    if named.arch.classes != data.classes and named.network is None:
        named = replace(named, arch=named.arch.with_classes(data.classes))
    guide = None if teacher is None else Teacher(load_network(teacher)[0], str(teacher))
    run_retrain(
        named.arch, data, recipe, out, start=named.start_weights(data, recipe.seed), teacher=guide, resume=resume
    )
    found: dict[str, Any] = {"test_acc": accuracy(load_network(out)[0], data, "test")}
    found["teacher_acc"] = None if guide is None else accuracy(guide.network, data, "test")
    return {**found, "weights": str(out / "weights.safetensors")}


def evaluate_network(path: Path, dataset: str, split: str, limit: int | None) -> dict[str, Any]:
    """`nas evaluate`: accuracy of a run or an exported file, and milliseconds per image.

    Raises:
        InputError: no such network or split.
    """
    chosen = [known for known in SPLITS if known == split]
    if not chosen:
        raise InputError(f"no split called {split!r}; known: {', '.join(SPLITS)}")
    if path.suffix == ".onnx":
        session = RUNTIMES["ort"].from_file(path, Target.parse("cpu-ort-fp32-b1-t1"))
        data = load_data(dataset, image_size=session.image_size)
        started = time.perf_counter()
        found = _file_accuracy(session, data, chosen[0], limit)
    else:
        network, arch, _ = load_network(path)
        data = load_data(dataset, image_size=arch.image_size)
        started = time.perf_counter()
        found = accuracy(network, data, chosen[0], limit)
    count = min(limit or data.size(chosen[0]), data.size(chosen[0]))
    return {"acc": found, "images": count, "ms_per_image": 1000 * (time.perf_counter() - started) / count}


def _file_accuracy(session: Session, data: Data, split: Split, limit: int | None) -> float:
    """Accuracy of a file that takes one image at a time."""
    hits = total = 0
    for images, labels in data.loader(split, 250, limit=limit):
        found = [int(session.run(image[None].numpy()).argmax()) for image in images]
        hits += sum(int(label) == guess for label, guess in zip(labels, found, strict=True))
        total += len(found)
    return hits / total


def export_network(name: str, form: str, target: str, table: Path | None, out: Path, seed: int) -> dict[str, Any]:
    """`nas export`: the file's path, how it agrees with the network on random images, and its time.

    Raises:
        InputError: no such network, format or target.
    """
    if form not in FORMATS:
        raise InputError(f"no format called {form!r}; known: {', '.join(FORMATS)}")
    wanted = Target.parse(target)
    prices = None if table is None else LatencyTable.load(table)
    named = network_named(name)
    network = named.with_weights(seed)
    path = export_onnx(network, named.arch.example(wanted.batch), out / f"{named.arch.id}.onnx")
    images = torch.cat([named.arch.example(wanted.batch, seed=index) for index in range(32)])
    checked = check_onnx(path, network, images, wanted)
    if prices is None:
        taken = time_networks([path], wanted, reference=named.arch, seed=seed)[0].ms
    else:
        taken = measured_ms([path], prices, seed)[0]
    found: dict[str, Any] = {
        "path": str(path),
        "max_abs_diff": checked.max_abs_diff,
        "top1_agreement": checked.top1_agreement,
    }
    return {**found, "measured_ms": taken, "predicted_ms": None if prices is None else prices.predict(named.arch).ms}
