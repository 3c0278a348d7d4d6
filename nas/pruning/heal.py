"""Training of what pruning left, with the dense network as its teacher; or its thresholds alone, without any."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.prune import Pruned
from nas.progress import say
from nas.pruning.job import Job
from nas.pruning.rivals import Heal
from nas.pruning.thresholds import learned, solved
from nas.train.features import follow_features
from nas.train.loop import Recipe
from nas.train.retrain import load_network, retrain
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D
from search_spaces.errors import InputError
from search_spaces.states import Tokens

__all__ = ["Healing", "heal", "healer", "usual_rate", "with_thresholds"]

RATE = 0.032
"""Learning rate times embedding width: Adam's goes with one over the width (muP, arXiv 2203.03466, table 3)."""


@dataclass(frozen=True)
class Healing:
    """How long and how fast to train what is left; the settings of `Recipe` and whether thresholds are learned."""

    epochs: int = 0  # 0: calibration alone
    batch_size: int = 64
    lr: float | None = None  # None: `usual_rate`
    weight_decay: float = 1e-6  # AS-ViT's
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    adaptive: bool = False  # numbers of patches that differ from image to image, where tokens are dropped

    def __post_init__(self) -> None:
        """Refuse settings of a training that is not asked for, and a number of epochs that is none."""
        if self.epochs < 0:
            raise InputError(f"--train-epochs must be at least 0, got {self.epochs}")
        own = [field for field in fields(self) if field.name != "adaptive"]
        changed = [field.name.replace("_", "-") for field in own if getattr(self, field.name) != field.default]
        if changed and not self.epochs:
            raise InputError(f"--{changed[0]} is of the training; add --train-epochs N")

    @property
    def changes(self) -> bool:
        """Whether anything is done to what calibration leaves."""
        return self.epochs > 0 or self.adaptive

    def recipe(self, arch: Arch, seed: int) -> Recipe:
        """Settings of the loop for what is left of `arch`. The teacher's scores are what softens the labels.

        Raises:
            InputError: one of them means nothing.
        """
        lr = usual_rate(arch) if self.lr is None else self.lr
        rest = {
            name: getattr(self, name) for name in ("epochs", "batch_size", "weight_decay", "ema", "mixup", "cutmix")
        }
        return Recipe(lr=lr, smoothing=0.0, seed=seed, **rest)

    def described(self) -> dict[str, Any] | None:
        """What a run's config says of it; None where calibration is all."""
        return asdict(self) if self.changes else None


def usual_rate(arch: Arch) -> float:
    """The learning rate for a trained ViT that is to be trained on: 5e-4 for 64 channels, 8.3e-5 for 384."""
    widths = [s.channels for spec, s in arch.steps() if isinstance(spec, MB3D) and isinstance(s, Tokens)]
    return RATE / widths[0]


def heal(job: Job, found: Pruned, out: Path, healing: Healing, budget: float) -> tuple[Pruned, dict[str, Any] | None]:
    """What is left, trained in the run folder `out`, and what its training came to; a run that is done is read.

    Labels and the dense network's scores teach it; an encoder its features alone. With thresholds where they are asked for and
    pay, see `with_thresholds`. None is said where nothing was done.

    Raises:
        InputError: `out` holds another run, or the training does not fit the data.
    """
    made = with_thresholds(job, found, out, healing, budget) if healing.adaptive else None
    if made is not None:
        return made
    if not healing.epochs:
        return found, None
    recipe = healing.recipe(job.named.arch, job.seed)
    return _read(job, found, out, recipe, _trained(job, found.arch, found.weights, recipe, out))


def with_thresholds(
    job: Job, found: Pruned, out: Path, healing: Healing, budget: float
) -> tuple[Pruned, dict[str, Any]] | None:
    """What is left with thresholds that are held at `budget` ms, learned in the run folder `out`, or without epochs solved for.

    None where there is nothing for them to do, or even one patch of each image would take longer than the budget; that is said.

    Raises:
        InputError: as `heal`.
    """
    if not found.arch.locations:
        say("what is left drops no patches: there is nothing for thresholds to do")
        return None
    if not healing.epochs:
        alone = solved(job, found, out, budget)
        return None if alone is None else (alone[0], {"epochs": 0, "adaptive": True, **alone[1]})
    recipe = healing.recipe(job.named.arch, job.seed)
    summary = learned(job, found, recipe, out, budget)
    return None if summary is None else _read(job, found, out, recipe, summary)


def _read(job: Job, found: Pruned, out: Path, recipe: Recipe, summary: dict[str, Any]) -> tuple[Pruned, dict[str, Any]]:
    """The network of a training, and what that came to."""
    job.network.cpu()  # where it taught on another device
    network, arch, _ = load_network(out)
    told = {name: value for name, value in summary.items() if name != "weights"}
    cost = summary.get("held_cost", found.cost)
    left = replace(found, arch=arch, weights=dict(network.state_dict()), cost=cost)
    adaptive = arch != arch.keeping(adaptive=False)
    return left, {"epochs": recipe.epochs, "lr": recipe.lr, "adaptive": adaptive, **told}


def healer(job: Job, folder: Path, healing: Healing) -> Heal | None:
    """What trains rivals as the result is trained, each in a run of its own in the folder; None without training."""
    if not healing.epochs:
        return None

    def train(name: str, arch: Arch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        _trained(job, arch, weights, healing.recipe(job.named.arch, job.seed), folder / name)
        job.network.cpu()
        return dict(load_network(folder / name)[0].state_dict())

    return train


def _trained(job: Job, arch: Arch, weights: Mapping[str, Tensor], recipe: Recipe, out: Path) -> dict[str, Any]:
    train = follow_features if job.encoder else retrain
    return train(arch, job.data, recipe, out, teacher=job.teacher(), start=dict(weights), resume=True)
