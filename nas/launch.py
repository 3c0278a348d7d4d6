"""What the commands do, from names and folders to results."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.cascade.files import are_exits, export_cascade, open_exits
from nas.cascade.running import BATCH as EXITS_AT_ONCE
from nas.data import Data, load_for, split_named
from nas.data import load as load_data
from nas.evaluate import accuracy
from nas.export import check_file
from nas.files import publish
from nas.formats import file_target, is_exported, normalisation_of, open_exported, range_images, write_exported
from nas.latency import LatencyTable
from nas.networks import Named, network_named, renormalised
from nas.peak_memory import peak_mb, weights_mb
from nas.processes import leads
from nas.progress import say
from nas.runs import Run
from nas.runtimes.quantise import calibration_images
from nas.scratch import scratch_dir
from nas.search.engine import Plan, run_search, supernet_config
from nas.search.places import Place, Times, budgets_each
from nas.search.score import Scorer
from nas.tables import find_table, find_tables, measured_ms, space_of, table_path
from nas.target import Target
from nas.thresholded import compare
from nas.timing import time_networks
from nas.train.features import follow_features, mean_distance
from nas.train.loop import Recipe
from nas.train.retrain import load_network
from nas.train.retrain import retrain as run_retrain
from nas.train.supernet import load_supernet
from nas.train.teachers import feature_teacher, teacher_named
from nas.train.thresholds import Budget, budget_of, learn_thresholds
from search_spaces.arch import Arch, Network
from search_spaces.cascade import Cascade, CascadeNetwork
from search_spaces.errors import InputError
from search_spaces.prepack import prepack
from search_spaces.zoo.released import Normalisation

__all__ = ["evaluate_network", "export_network", "retrain_network", "search_supernet"]

IMAGES_AT_ONCE = 250  # of an evaluation
TIMED_IMAGES = 64  # that a file whose time depends on the image is timed on, one by one
LOW_AGREEMENT = 0.95  # share of images with the same best class, below which a file in int8 is said to differ


def search_supernet(
    supernet: Path,
    tables: Sequence[Path],
    targets: Sequence[str],
    plan: Plan,
    out: Path,
    *,
    budgets: Sequence[Times] = (),
    foreign: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas search`: winners of the budgets, their architecture files relative to `out`.

    Winners hold the budgets on every target: of `tables` and then of `targets`, with the plan's on all of them unless `budgets` has some for
    each. Peak memory is that on the first.

    Raises:
        InputError: no such supernet or table, a table of another machine, a target twice, or budgets for other than each of them.
        BudgetError: a budget cannot be met.
    """
    Run.check_free(out, resume=resume)  # before hours of measuring
    each = budgets_each(budgets or [plan.budgets], max(1, len(tables) + len(targets)))
    model, run = load_supernet(supernet)
    prices = find_tables(tables, targets, lambda: model.space)
    for table in prices:
        table.check_machine(foreign)
    data = load_data(run.config["data"], image_size=model.space.largest.image_size)

    def memory(archs: Sequence[Arch]) -> list[float]:
        return peak_mb(archs, prices[0].target)

    first, *beside = (
        Place(table.target.name, table, partial(measured_ms, table=table, seed=plan.seed), own)
        for table, own in zip(prices, each, strict=True)
    )
    config, score = supernet_config(supernet, out, *prices), Scorer(model, data, plan.seed)
    return run_search(
        model.space,
        first.prices,
        score,
        first.measure,
        plan,
        out,
        config,
        target=first.name,
        beside=beside,
        memory=memory,
        resume=resume,
    )


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


def evaluate_network(
    name: str,
    dataset: str,
    split: str,
    limit: int | None,
    *,
    weights: Path | None = None,
    budget_ms: float | None = None,
) -> dict[str, Any]:
    """`nas evaluate`: accuracy of a run, a checkpoint, an exported file or a folder of a cascade's, and milliseconds per image, those of loading left out.

    A cascade runs whole: `acc` is its last exit's, and `exits` has that of each.

    Raises:
        InputError: no such network or split, or the data has another number of classes.
    """
    chosen = split_named(split)
    taken: Normalisation | None = None  # images as a file takes them
    size = IMAGES_AT_ONCE
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    if is_exported(name) or are_exits(Path(name)):
        if weights is not None:
            raise InputError(f"{name} holds its weights; leave out --weights")
        if budget_ms is not None:
            raise InputError(f"--budget-ms chooses a winner of a search run, and {name} is none; leave it out")
        session = open_exported(Path(name)) if is_exported(name) else open_exits(Path(name))
        taken = normalisation_of(Path(name)) if is_exported(name) else None
        classes, image_size, channels, run = session.classes, session.image_size, session.channels, session.run
    else:
        named = network_named(name, budget_ms, weights, cascades=True)
        if named.network is None and named.supernet is None:
            raise InputError(f"{name} has no weights to evaluate; give a run, a checkpoint, or --weights FILE")
        named = named.seeing(load_data(dataset, image_size=named.arch.image_size))
        network = named.with_weights(seed=0)
        size = EXITS_AT_ONCE if isinstance(named.arch, Cascade) else size
        arch, run = named.arch, _eager(network)
        classes, image_size, channels = arch.classes, arch.image_size, arch.channels
    data = load_for(name, dataset, image_size, classes, channels)
    hits: Any = 0  # (exits,)
    seconds = 0.0
    count = min(limit or data.size(chosen), data.size(chosen))
    for images, labels in data.loader(chosen, size, limit=limit):
        given = renormalised(images, data, taken).numpy()
        started = time.perf_counter()
        found = run(given)
        seconds += time.perf_counter() - started
        hits += (found.reshape(len(found), -1, classes).argmax(2) == labels.numpy()[:, None]).sum(0)
    accs = (hits / count).tolist()
    exits = {"exits": [{"acc": acc} for acc in accs]} if len(accs) > 1 else {}
    return {"acc": accs[-1], "images": count, "ms_per_image": 1000 * seconds / count, **exits}


def _eager(network: Network) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Images -> logits (N, classes), or those of a cascade's exits (N, exits, classes)."""
    packed = prepack(network)

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found = packed(torch.from_numpy(images))
        logits: NDArray[np.float32] = (torch.stack(found, 1) if isinstance(found, list) else found).numpy()
        return logits

    return run


def export_network(
    name: str,
    form: str,
    target: str | None,
    table: Path | None,
    out: Path,
    seed: int,
    *,
    int8: bool = False,
    weights: Path | None = None,
    dataset: str | None = None,
    budget_ms: float | None = None,
    static: bool = False,
    foreign: bool = False,
) -> dict[str, Any]:
    """`nas export`: the file's path, how it agrees with the network on images of `dataset` or random ones, its time and memory.

    Without a target it is the table's, or one thread of the first runtime that reads the format. In `int8`, training images of `dataset`,
    or of what the network's run was trained on, tell the ranges of activations, and random ones those of a network with random weights.
    With `static` it is that of the network that keeps of every image as many patches as stay on average. For a network with
    thresholds, a table and `dataset`, `images_ms` holds the mean and the p95 over images, predicted and measured.

    Raises:
        InputError: no such network, format or target, one that does not go with the others, a package that is missing, a table of another
            target or machine, no images to tell ranges by, or a file that gives other scores than the network; then there is no file.
    """
    wanted, prices = _file_prices(form, int8, target, table, foreign)
    named = network_named(name, budget_ms, weights, cascades=True)
    if isinstance(named.arch, Cascade):
        return _export_cascade(named, wanted, prices, dataset, out, seed, fixed=static)
    if static and named.arch.keeping(adaptive=False) == named.arch:
        raise InputError(f"--static fixes what thresholds choose, and {name} has none; leave it out")
    named = named.static() if static else named
    if int8 and dataset is None:
        dataset = _own_data(name, named)
    network = named.with_weights(seed)
    ranges = _ranges(named, dataset, wanted.batch, seed) if int8 else None
    images = named.images_to_check(dataset, wanted.batch)
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch_dir()) as folder:
        written = write_exported(network, form, wanted, Path(folder), ranges, named.normalisation)
        checked = check_file(written, network, images, wanted)
        publish(sorted(written.parent.iterdir()), out)  # in place of files from before only if these are right
    path = out / written.name
    if int8 and checked.top1_agreement < LOW_AGREEMENT:
        say(f"in int8, the best class is another one on {1 - checked.top1_agreement:.1%} of {checked.images} images")
    if prices is None:
        taken = time_networks([path], wanted, reference=named.arch, seed=seed)[0].ms
    else:
        taken = measured_ms([path], prices, seed)[0]
    found: dict[str, Any] = {
        "path": str(path),
        "max_abs_diff": checked.max_abs_diff,
        "top1_agreement": checked.top1_agreement,
        "images": checked.images,
    }
    found |= {"measured_ms": taken, "predicted_ms": None if prices is None else prices.predict(named.arch).ms}
    found |= {"peak_mb": peak_mb([path], wanted)[0], "weights_mb": weights_mb(named.arch)}
    if prices is not None and dataset is not None and named.arch != named.arch.keeping(adaptive=False):
        spread = compare(path, network, named.arch, images[:TIMED_IMAGES], prices, seed=seed)
        found["images_ms"] = {name: spread[name] for name in ("predicted", "measured", "ratio", "kept")}
    return found


def _export_cascade(
    named: Named, target: Target, prices: LatencyTable | None, dataset: str | None, out: Path, seed: int, *, fixed: bool
) -> dict[str, Any]:
    """The files of a cascade's exits, see `export_cascade`; `fixed` is whether fixed numbers of patches were asked for."""
    if fixed or (target.runtime, target.dtype) != ("ort", "fp32"):
        raise InputError(
            f"cascade {named.arch.id} is exported as an ONNX file of each exit, in float, for ONNX Runtime; leave out --format, --int8 "
            "and --static, and name a --target such as cpu-ort-fp32-b1-t1"
        )
    network = named.with_weights(seed)
    assert isinstance(network, CascadeNetwork)
    return export_cascade(network, target, prices, named.images_to_check(dataset, target.batch), out, seed)


def _file_prices(
    form: str, int8: bool, target: str | None, table: Path | None, foreign: bool
) -> tuple[Target, LatencyTable | None]:
    """The target that a file is timed on, see `file_target`, and the table that predicts its time, whose target it is unless one is named."""
    if table is None:
        return file_target(form, int8, target), None
    prices = LatencyTable.load(table_path(table))
    wanted = file_target(form, int8, target or prices.target.name)
    prices.check_machine(foreign)
    if prices.target != wanted:
        raise InputError(f"{prices.path.name} is for {prices.target.name}; pass --target {prices.target.name}")
    return wanted, prices


def _own_data(name: str, named: Named) -> str | None:
    """The data set that the network was trained on, whose images tell ranges for int8; None for random weights, for which random images do."""
    own = named.trained_on
    if own is None and named.network is not None:
        raise InputError(
            f"--int8 rounds to ranges that are told by images such as {name} was trained on; name them with --data"
        )
    return own


def _ranges(named: Named, dataset: str | None, batch: int, seed: int) -> Tensor:
    """Images (N, C, H, W), whole batches of them, that tell the ranges of activations in int8."""
    arch = named.arch
    if dataset is None:
        say("ranges of int8 are those of random images, as the weights are random")
        shape = (batch, arch.channels, arch.image_size, arch.image_size)
        return torch.from_numpy(np.concatenate([*calibration_images(shape)]))
    data = load_data(dataset, image_size=arch.image_size, labels=False)
    return named.seen(range_images(data, batch, seed), data)
