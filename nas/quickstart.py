"""The whole path on embedded data: measure, train, search, retrain, export, verify, report."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nas import data as datasets
from nas.errors import BudgetError
from nas.evaluate import accuracy
from nas.export import Checked, check_file, export_onnx
from nas.latency import LatencyTable
from nas.measure import measure_table
from nas.peak_memory import peak_mb, weights_mb
from nas.progress import say
from nas.report import write_report
from nas.runs import Run
from nas.search.engine import Plan, Search, Winner, run_search, supernet_config, tightened
from nas.search.score import Scorer
from nas.tables import measured_ms, timed
from nas.target import Target
from nas.timing import ROUNDS
from nas.train.loop import Recipe
from nas.train.retrain import Teacher, load_network, retrain
from nas.train.supernet import load_supernet, space_named, train_supernet
from search_spaces.arch import Arch

__all__ = ["Quickstart", "Settings"]

VERIFICATIONS = 4  # times that a retrained winner may turn out over budget
LONGER = 3  # times the rounds of a timing that decides whether it does
ONNX = "network.onnx"  # in a network's folder
CHECK_IMAGES = 1000  # search-validation images on which an exported file is compared with its network


@dataclass(frozen=True)
class Settings:
    """What a quickstart does."""

    space: str = "hybrid_digits"
    data: str = "digits64"
    target: str = "cpu-ort-fp32-b1-t1"
    shares: tuple[float, ...] = (0.4, 0.6, 0.8)  # budgets, of the largest network's measured latency
    trials: int = 30
    largest_epochs: int = 2  # of the largest network alone, from which the supernet starts
    supernet_epochs: int = 1
    epochs: int = 1  # of the winners, and of the largest network once more, from the supernet's weights
    batch_size: int = 24
    lr: float = 3e-3
    rounds: int = 6  # timing rounds of the latency table
    seed: int = 0


class Quickstart:
    """One quickstart in its run folder. Each step is a run of its own below it; a resumed one goes on where it stopped."""

    def __init__(self, settings: Settings, out: Path, *, resume: bool = False) -> None:
        """Open the run folder.

        Raises:
            InputError: unknown space, data or target; `out` holds another run, or this one without `resume`.
        """
        self.settings, self.out, self.resumed = settings, out, resume
        self.target = Target.parse(settings.target)
        self.data = datasets.load(settings.data)
        self.space = space_named(settings.space, self.data.classes)
        self.run = Run.start(out, "quickstart", {**asdict(settings), "shares": list(settings.shares)}, resume=resume)

    def __call__(self) -> dict[str, Any]:
        """Do what is not done yet; returns the content of `summary.json`.

        Raises:
            BudgetError: no network holds a budget.
        """
        if self.run.summary is not None:
            return self.run.summary
        with self.run.locked():
            return self._through()

    def _through(self) -> dict[str, Any]:
        started = time.monotonic()
        table = measure_table(self.space, self.target, self.out / "table", rounds=self.settings.rounds, resume=True)
        recipe, first = self._recipe(self.settings.supernet_epochs), self.settings.largest_epochs
        train_supernet(self.space, self.data, recipe, self.out / "supernet", largest_epochs=first, resume=True)
        self.supernet, _ = load_supernet(self.out / "supernet")
        largest_ms = self._largest_ms(table)
        search = self._search(table, largest_ms)
        self.retrained(self.space.largest, None)
        winners = self._verified(search, table)
        archs = [*(winner.candidate.arch for winner in winners), self.space.largest]
        *peaks, largest_mb = peak_mb([self._folder(arch) / ONNX for arch in archs], self.target)
        results = [self._result(winner, peak) for winner, peak in zip(winners, peaks, strict=True)]
        largest = {
            "measured_ms": largest_ms,
            "peak_mb": largest_mb,
            "weights_mb": weights_mb(self.space.largest),
            "test_acc": self._test_acc(self.space.largest),
            "arch": self._file(self.space.largest, "arch.json"),
        }
        summary = {
            "seconds": time.monotonic() - started,
            "resumed": self.resumed,
            "target": self.target.name,
            "results": results,
            "largest": largest,
            "report": "report.html",
        }
        write_report(self.out, summary)
        return self.run.finish(summary)

    def _recipe(self, epochs: int) -> Recipe:
        batch_size, lr = self.settings.batch_size, self.settings.lr
        return Recipe(epochs=epochs, batch_size=batch_size, lr=lr, seed=self.settings.seed)

    def _largest_ms(self, table: LatencyTable) -> float:
        """The largest network's measured latency, on which the budgets stand; measured once a run."""
        for record in self.run.records():
            if record["event"] == "largest":
                return float(record["ms"])
        found = measured_ms([self.space.largest], table, self.settings.seed)[0]
        self.run.append({"event": "largest", "ms": found})
        return found

    def _search(self, table: LatencyTable, largest_ms: float) -> Search:
        plan = Plan(
            tuple(share * largest_ms for share in self.settings.shares), self.settings.trials, seed=self.settings.seed
        )
        score = Scorer(self.supernet, self.data, self.settings.seed)

        def measure(archs: Sequence[Arch]) -> list[float]:
            return measured_ms(archs, table, self.settings.seed)

        def memory(archs: Sequence[Arch]) -> list[float]:
            return peak_mb(archs, self.target)

        out = self.out / "search"
        run_search(
            self.space,
            table,
            score,
            measure,
            plan,
            out,
            supernet_config(self.out / "supernet", out, table),
            target=self.target.name,
            memory=memory,
            resume=True,
        )
        return Search(self.space, table, score, measure, plan, Run.open(out, "search"))

    def _folder(self, arch: Arch) -> Path:
        return self.out / "networks" / arch.id

    def _file(self, arch: Arch, name: str) -> str:
        return str((self._folder(arch) / name).relative_to(self.out))

    def retrained(self, arch: Arch, teacher: Teacher | None) -> Checked:
        """Retrain from the supernet's weights, export, and compare the file with the network."""
        folder = self._folder(arch)
        score = Scorer(self.supernet, self.data, self.settings.seed)
        start = self.supernet.extract(arch, score.recalibrated(arch)).state_dict()
        recipe = self._recipe(self.settings.epochs)
        retrain(arch, self.data, recipe, folder, start=start, teacher=teacher, resume=True)
        network, _, _ = load_network(folder)
        path = folder / ONNX
        if not path.exists():
            export_onnx(network, arch.example(self.target.batch), path)
        own = self.data.at(arch.image_size)
        images = torch.cat([batch for batch, _ in own.loader("val", 250, limit=CHECK_IMAGES)])
        return check_file(path, network, images, self.target)

    def _verified(self, search: Search, table: LatencyTable) -> list[Winner]:
        """Winners whose exported files, retrained and all timed together, hold their budgets.

        Raises:
            BudgetError: a budget is still missed after a bounded number of tightenings.
        """
        teacher = Teacher(load_network(self._folder(self.space.largest))[0], self.data.classes, remembered={})
        winners = search.winners()
        for _ in range(VERIFICATIONS):
            self.checked = {
                winner.candidate.arch.id: self.retrained(winner.candidate.arch, teacher) for winner in winners
            }
            self.timings = self._timed(winners, table)
            winners = [replace(one, measured=(self.timings[one.candidate.arch.id]["ms"],)) for one in winners]
            over = [winner for winner in winners if winner.measured_ms > winner.budget_ms]
            if not over:
                return winners
            winners = [self._tighter(search, winner) if winner in over else winner for winner in winners]
        raise BudgetError(
            f"exported networks still miss their budgets after {VERIFICATIONS} rounds, though the cheapest network is predicted "
            f"at {table.predict(search.cheapest[0]).ms:.4g} ms: the machine is too noisy to time on"
        )

    def _timed(self, winners: list[Winner], table: LatencyTable) -> dict[str, dict[str, float]]:
        """How long each winner's exported file takes, all timed together; recorded, so that a resumed run goes on alike.

        Where one seems over its budget, all are timed again for longer, and that counts: replacing a network takes a training.
        """
        budgets: dict[str, float] = {}
        for name, budget in ((winner.candidate.arch.id, winner.budget_ms) for winner in winners):
            budgets[name] = min(budget, budgets.get(name, budget))
        for record in self.run.records():
            if record["event"] == "verified" and record["timings"].keys() == budgets.keys():
                return dict(record["timings"])
        files = [self.out / "networks" / name / ONNX for name in budgets]
        found = timed(files, table, self.settings.seed)
        if any(timing.ms > budget for timing, budget in zip(found, budgets.values(), strict=True)):
            found = timed(files, table, self.settings.seed, LONGER * ROUNDS)
        timings = {name: asdict(timing) for name, timing in zip(budgets, found, strict=True)}
        self.run.append({"event": "verified", "timings": timings})
        return timings

    def _tighter(self, search: Search, winner: Winner) -> Winner:
        budget, taken = winner.budget_ms, winner.measured_ms
        limit = tightened(budget, winner.candidate.high, budget, taken)
        say(
            f"{winner.candidate.arch.id} exported takes {taken:.4g} ms, over {budget:.4g}; solving again below {limit:.4g}"
        )
        return search.winner((budget,), (limit,))

    def _result(self, winner: Winner, peak: float) -> dict[str, Any]:
        arch = winner.candidate.arch
        checked = self.checked[arch.id]
        return {
            "budget_ms": winner.budget_ms,
            "predicted_ms": winner.candidate.ms,
            "measured_ms": winner.measured_ms,
            "timing": self.timings[arch.id],
            "peak_mb": peak,
            "weights_mb": weights_mb(arch),
            "search_acc": winner.search_acc,
            "test_acc": self._test_acc(arch),
            "arch": self._file(arch, "arch.json"),
            "weights": self._file(arch, "weights.safetensors"),
            "onnx": self._file(arch, ONNX),
            "onnx_max_abs_diff": checked.max_abs_diff,
            "onnx_top1_agreement": checked.top1_agreement,
        }

    def _test_acc(self, arch: Arch) -> float:
        network, _, _ = load_network(self._folder(arch))
        return accuracy(network, self.data.at(arch.image_size), "test")
