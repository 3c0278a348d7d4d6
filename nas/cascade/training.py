"""Training a cascade: all exits at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress import exit_loss
from nas.cascade.running import every_exit
from nas.data import Data
from nas.processes import processes
from nas.runs import Run
from nas.train.loop import Recipe, fit
from nas.train.retrain import asked, check_fit, fresh_network, load_network
from search_spaces.cascade import Cascade, CascadeNetwork
from search_spaces.errors import InputError

__all__ = ["load_cascade", "train_cascade"]


def train_cascade(
    arch: Cascade,
    data: Data,
    recipe: Recipe,
    out: Path,
    *,
    start: dict[str, Tensor] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `arch` by the sum of its exits' losses, from the weights `start` or fresh ones, into the run folder `out`; returns the run's summary.

    `val_acc` is a list, one of each exit; the test split stays unread.

    Raises:
        InputError: cascade, data or recipe do not fit each other, or `out` holds another run.
    """
    check_fit(arch, data, recipe, None)
    if recipe.sides or recipe.mixed_depth:
        raise InputError("a cascade is trained at one image size and depth; leave out sides and mixed depth")
    if processes() > 1:
        raise InputError("a cascade is trained by one process; start the command without torchrun")
    run = Run.start(out, "cascade", asked(arch, data, recipe, start, None), resume=resume)
    if run.summary is not None:
        return run.summary
    with run.locked():
        network = fresh_network(arch, recipe.seed)
        assert isinstance(network, CascadeNetwork)
        if start is not None:
            network.load_state_dict(start)

        def losses(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
            yield exit_loss(model(images), labels, recipe.smoothing)

        fit(network, losses, data, recipe, out / "checkpoint.pt", f"train {out.name}")
        run.save_network(arch, network.state_dict())
        _, hits = every_exit(network, data, "val")
        summary = run.finish({"val_acc": hits.mean(0).tolist(), "weights": str(out / "weights.safetensors")})
        (out / "checkpoint.pt").unlink()
    return summary


def load_cascade(path: Path) -> tuple[CascadeNetwork, Run]:
    """The cascade of a run that `nas cascade train` wrote, in eval mode.

    Raises:
        InputError: no such run, or weights that do not fit its architecture.
    """
    network, _, run = load_network(path, "cascade")
    if not isinstance(network, CascadeNetwork):
        raise InputError(f"{path} holds a network of one exit, no cascade; train one with `nas cascade train`")
    return network, run
