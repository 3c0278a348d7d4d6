"""What the commands of `nas cascade` do, from names and folders to results."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import compress
from nas.cascade.bench import ROUNDS, bench, exit_ms, prepacked
from nas.cascade.costs import until_macs, until_ms
from nas.cascade.files import export_cascade
from nas.cascade.running import every_exit, run_early
from nas.cascade.thresholds import exits_taken, mean_cost, solve
from nas.cascade.training import load_cascade, train_cascade
from nas.data import Data, Split, load_for, split_named
from nas.data import load as load_data
from nas.files import read_json, write_json
from nas.networks import network_named
from nas.progress import say
from nas.runs import CONFIG, WEIGHTS, Run, digest
from nas.tables import find_table, space_of
from nas.target import Target, fingerprint
from nas.train.loop import Recipe
from search_spaces import zoo
from search_spaces.cascade import Cascade, CascadeNetwork
from search_spaces.errors import InputError

__all__ = ["Prices", "bench_run", "calibrate_named", "export_named", "run_run", "train_named"]

THRESHOLDS = "thresholds.json"
TIMED = 256  # images that exits are timed on, or one batch where that is more


def train_named(
    names: Sequence[str],
    dataset: str,
    recipe: Recipe,
    out: Path,
    *,
    feature_reuse: bool = True,
    relation_reuse: bool = True,
    resume: bool = False,
) -> dict[str, Any]:
    """`nas cascade train`: accuracies of every exit on the test split, read once training is over.

    One name is that of a cascade; of several, coarse to fine, one is made by `compress.cascade`, from their weights where they have some.

    Raises:
        InputError: no such networks, or they make no cascade, or do not fit the data.
    """
    arch, start, data = _named(names, dataset, recipe.seed, feature_reuse, relation_reuse)
    summary = train_cascade(arch, data, recipe, out, start=start, resume=resume)
    network, _ = load_cascade(out)
    _, hits = every_exit(network, data, "test")
    return {"test_acc": hits.mean(0).tolist(), **summary}


def _named(
    names: Sequence[str], dataset: str, seed: int, features: bool, relations: bool
) -> tuple[Cascade, dict[str, torch.Tensor] | None, Data]:
    """The cascade, its weights if there are any, and the data at its size."""
    if len(names) == 1:
        named = network_named(names[0], cascades=True)
        if not isinstance(named.arch, Cascade):
            raise InputError(f"{names[0]} has one exit; name a cascade, or two networks or more, from coarse to fine")
        if not (features and relations):
            raise InputError(
                f"{names[0]} says itself what it reuses; leave out --no-feature-reuse and --no-relation-reuse"
            )
        data = load_data(dataset, image_size=named.arch.image_size)
        named = named.of_classes(data.classes, seed)
        assert isinstance(named.arch, Cascade)
        return named.arch, named.start_weights(data, seed), data
    networks = []
    for name in names:
        found = network_named(name)
        own = load_data(dataset, image_size=found.arch.image_size)
        if found.supernet is None:
            found = found.of_classes(own.classes, seed)
        elif found.arch.classes != own.classes:
            raise InputError(
                f"{name} tells {found.arch.classes} classes apart, {own.name} has {own.classes}; give the data its supernet was trained on"
            )
        networks.append(found.seeing(own).with_weights(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is added is drawn
        made = compress.cascade(networks, features, relations)
    return made.arch, dict(made.state_dict()), load_data(dataset, image_size=made.arch.image_size)


@dataclass(frozen=True)
class Prices:
    """Where the milliseconds of a budget come from: a table, see `nas.tables.find_table`, or torch on this machine where neither is named."""

    table: Path | None = None
    target: str | None = None
    foreign: bool = False  # whether another machine's table will do
    batch: int | None = None  # of torch; 1 unless given, as are threads
    threads: int | None = None

    @property
    def predicted(self) -> bool:
        """Whether a table tells them."""
        return self.table is not None or self.target is not None


def calibrate_named(
    name: str,
    dataset: str,
    *,
    budget_ms: float | None,
    budget_macs: float | None,
    prices: Prices,
    weights: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """`nas cascade calibrate`: thresholds for a mean cost of an image on search-validation, written beside the weights.

    Those are a run's, or with `out` any cascade's that has weights, which are put there with it; again for another budget, too.
    Milliseconds are those of whole batches, as a table predicts them or as torch takes them on this machine.

    Raises:
        InputError: no such network, data of other classes, not one budget, a table of another machine or without the cascade's rows,
            options that do not go together, or an `out` that holds another network.
        BudgetError: even the first exit costs more.
    """
    if (budget_ms is None) == (budget_macs is None):
        raise InputError("give one budget, --budget-ms or --budget-macs")
    unit, budget = ("ms", budget_ms) if budget_ms is not None else ("macs", budget_macs)
    assert budget is not None
    if not 0 < budget < float("inf"):
        raise InputError(f"--budget-{unit} must be positive and finite, got {budget:g}")
    if prices.predicted and unit == "macs":
        raise InputError("--table and --target price milliseconds; give --budget-ms, or leave them out")
    if prices.predicted and (prices.batch is not None or prices.threads is not None):
        raise InputError(
            "--batch and --threads are of torch, a target has its own; leave them out, or --table and --target"
        )
    if out is None and (weights is not None or name in zoo.names() or Path(name).is_file()):
        raise InputError(
            f"thresholds lie with a cascade's weights; pass --out, a folder for them and those of {name}, or give the "
            "folder of a run without it"
        )
    network = load_cascade(Path(name))[0] if out is None else _any(name, weights)
    data = _data_for(network, dataset)
    if out is not None and (out / CONFIG).exists():
        _put(network, out)  # which refuses a run of another network before anything is measured
    elif out is not None:
        Run.check_free(out, resume=True)
    costs, how = _costs(network, data, unit, prices)
    confidence, hits = every_exit(network, data, "val")
    thresholds = solve(confidence, costs, budget)
    path = Path(name) if out is None else _put(network, out)
    taken = exits_taken(confidence, thresholds)
    found = {
        "thresholds": thresholds.tolist(),
        "unit": unit,
        "budget": budget,
        "costs": costs.tolist(),
        "val_cost": mean_cost(confidence, thresholds, costs),
        "val_acc": float(hits[np.arange(len(taken)), taken].mean()),
        "shares": _shares(taken, len(costs)),
        **how,
    }
    write_json(path / THRESHOLDS, found)
    return found


def _put(network: CascadeNetwork, out: Path) -> Path:
    """Make `out` a run that holds the network, if it is not."""
    state = dict(network.state_dict())
    run = Run.start(out, "cascade", {"arch": network.arch.id, "start": digest(state)}, resume=True)
    with run.locked():
        if run.summary is None:
            run.save_network(network.arch, state)
            run.finish({"weights": str(out / WEIGHTS)})
    return out


def _any(name: str, weights: Path | None) -> CascadeNetwork:
    """That of any name, with its weights."""
    network = network_named(name, weights=weights, cascades=True).network
    if network is None:
        raise InputError(f"{name} has no weights; give a checkpoint, a run, or --weights FILE")
    if not isinstance(network, CascadeNetwork):
        raise InputError(f"{name} has one exit; give a cascade, or make one with `nas cascade train`")
    return network.eval()


def _costs(
    network: CascadeNetwork, data: Data, unit: str, prices: Prices
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """(exits,) what an image costs as far as each exit, and what of the record says where that is from."""
    if prices.predicted:
        return _predicted(network.arch, prices)
    threads = prices.threads or 1
    target = Target("cpu", "eager", "fp32", prices.batch or 1, threads)
    how = {"batch": target.batch, "threads": target.threads, "machine": fingerprint(target)}
    if unit == "macs":
        return until_macs(network.arch), {"target": None, "table": None, **how}
    images = _images(data, "val", max(TIMED, target.batch))
    if len(images) < target.batch:
        raise InputError(
            f"search-validation has {len(images)} images, fewer than --batch {target.batch}; give a smaller one"
        )
    with _threads(threads):
        costs = exit_ms(prepacked(network), images, target.batch, ROUNDS)
    return costs, {"target": target.name, "table": None, **how}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """With so many threads of torch, and as many as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _predicted(cascade: Cascade, prices: Prices) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """The same by a table."""
    table = find_table(prices.table, prices.target, lambda: space_of(cascade))
    table.check_machine(prices.foreign)
    if not table.verdict["good"]:
        say(f"{table.path.name} is not to be relied on: {table.verdict['why']}")
    target = table.target
    about = {"target": target.name, "table": {"name": table.path.name, "id": table.id}}
    how = {"batch": target.batch, "threads": target.threads, "machine": dict(table.content.fingerprint)}
    return until_ms(cascade, table) / target.batch, {**about, **how}


def run_run(path: Path, dataset: str, *, split: str, batch: int, threads: int, limit: int | None) -> dict[str, Any]:
    """`nas cascade run`: images leave for real; accuracy, share and accuracy of every exit, milliseconds an image.

    Raises:
        InputError: no such run or split, it is not calibrated, or the data has other classes.
    """
    network, thresholds, data, chosen = _ready(path, dataset, split, threads)
    given, seconds = [], 0.0
    with torch.inference_mode():
        for images, _ in data.loader(chosen, batch, limit=limit):
            started = time.perf_counter()
            given.append(run_early(network, images, thresholds))
            seconds += time.perf_counter() - started
    logits, taken = (torch.cat(parts) for parts in zip(*given, strict=True))
    hits, count = _hits(logits, data, chosen), len(logits)
    exits = _exits(hits, taken, len(network.parts))
    return {"acc": float(hits.float().mean()), "images": count, "ms_per_image": 1000 * seconds / count, "exits": exits}


def bench_run(
    path: Path, dataset: str, *, split: str, batch: int, threads: int, limit: int | None, seed: int
) -> dict[str, Any]:
    """`nas cascade bench`: images a second with early exit, if regrouping cost nothing (`ideal_throughput`), and with no exit but the last (`baseline_…`).

    Raises:
        InputError: as `run_run`.
    """
    network, thresholds, data, chosen = _ready(path, dataset, split, threads)
    batches = (images for images, _ in data.loader(chosen, batch, limit=limit))
    first = _images(data, chosen, min(limit or data.size(chosen), max(TIMED, batch)))
    timed = bench(network, batches, first, thresholds, batch, seed)
    hits, count = _hits(timed.logits, data, chosen), len(timed.logits)
    left = _exits(hits, timed.taken, len(network.parts))
    exits = [{**own, "ms": float(ms)} for own, ms in zip(left, timed.exit_ms, strict=True)]
    shares = np.array([own["share"] for own in left])
    return {
        "exits": exits,
        "acc": float(hits.float().mean()),
        "images": count,
        "ms_per_image": 1000 * timed.early_s / count,
        "throughput": count / timed.early_s,
        "ideal_throughput": 1000 / float(shares @ timed.exit_ms),
        "baseline_acc": float(_hits(timed.last, data, chosen).float().mean()),
        "baseline_throughput": count / timed.full_s,
        "batch": batch,
        "threads": threads,
    }


def _ready(
    path: Path, dataset: str, split: str, threads: int
) -> tuple[CascadeNetwork, NDArray[np.float64], Data, Split]:
    """A calibrated run's network, thresholds, data and split; torch gets its threads."""
    network, _ = load_cascade(path)
    thresholds = _thresholds(path, len(network.parts))
    data, chosen = _data_for(network, dataset), split_named(split)
    torch.set_num_threads(threads)
    return prepacked(network), thresholds, data, chosen


def _hits(logits: torch.Tensor, data: Data, split: Split) -> torch.Tensor:
    """(images,) whether each of the split's first images is told right."""
    return logits.argmax(1) == torch.from_numpy(data.labels(split))[: len(logits)]


def _exits(hits: torch.Tensor, taken: torch.Tensor, count: int) -> list[dict[str, float | None]]:
    """Accuracy, if any image left there, and share of each exit."""
    shares = _shares(taken.numpy(), count)
    return [
        {"acc": float(hits[taken == number].float().mean()) if share else None, "share": share}
        for number, share in enumerate(shares)
    ]


def export_named(
    name: str, out: Path, *, batch: int, weights: Path | None = None, dataset: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """`nas cascade export`: one ONNX file of each exit, checked one after the other on images of `dataset` or random ones, and timed.

    What has no weights, such as a zoo name without a checkpoint of `weights`, is exported with random ones.

    Raises:
        InputError: no such cascade, or a file disagrees with it.
    """
    named = network_named(name, weights=weights, cascades=True)
    if not isinstance(named.arch, Cascade):
        raise InputError(f"{name} has one exit; give it to nas export")
    network = named.with_weights(seed)
    assert isinstance(network, CascadeNetwork)
    target = Target("cpu", "ort", "fp32", batch, threads=1)
    return export_cascade(network, target, None, named.images_to_check(dataset, batch), out, seed)


def _thresholds(path: Path, exits: int) -> NDArray[np.float64]:
    """(exits - 1,) that calibration left in the run's folder."""
    if not (path / THRESHOLDS).is_file():
        raise InputError(f"{path} has no thresholds; run `nas cascade calibrate` on it first")
    found = read_json(path / THRESHOLDS)
    given = found.get("thresholds") if isinstance(found, dict) else None
    if not isinstance(given, list) or len(given) != exits - 1 or not all(isinstance(one, float) for one in given):
        raise InputError(f"{path / THRESHOLDS} is damaged; run `nas cascade calibrate` again")
    return np.array(given)


def _data_for(network: CascadeNetwork, name: str) -> Data:
    return load_for("the cascade", name, network.arch.image_size, network.arch.classes, network.arch.channels)


def _images(data: Data, split: Split, limit: int | None) -> torch.Tensor:
    """The first images (N, C, H, W) of a split; they are loaded before anything is timed."""
    return torch.cat([images for images, _ in data.loader(split, 250, limit=limit)])


def _shares(taken: NDArray[np.int64], exits: int) -> list[float]:
    return [float(share) for share in np.bincount(taken, minlength=exits) / len(taken)]
