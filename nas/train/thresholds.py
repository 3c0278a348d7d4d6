"""Training a network and the thresholds of its pruning locations against a budget (AS-ViT, arXiv 2209.13802, section 3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress import budget_loss, calibrate, counts_of, curve_of, hold, thresholds_of, token_loss
from compress.token_losses import Curve
from nas.data import Data
from nas.errors import BudgetError
from nas.evaluate import accuracy, calibration_batches
from nas.processes import processes
from nas.runs import Run
from nas.train.loop import Objective, Recipe, fit
from nas.train.retrain import Teacher, asked, check_fit, fresh_network
from nas.train.teachers import Adapted
from search_spaces.arch import Arch, Network
from search_spaces.blocks.token_prune import TEMPERATURE
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.states import Tokens
from search_spaces.tokens import Chosen

__all__ = ["BUDGET_WEIGHT", "THRESHOLD_LR", "Budget", "budget_of", "dense_teacher", "learn_thresholds", "token_pruning"]

BUDGET_WEIGHT = 9.0
"""Of the budget's loss as a share of the dense cost, so that one weight serves milliseconds and MACs.

AS-ViT's is 2.0 for 10⁹ MACs, which is 2.5, 9.1 and 35 for the shares of DeiT-T, S and B: dense they take 1.25, 4.57 and 17.5.
S, on which the paper reports most, is also their geometric mean.
"""

THRESHOLD_LR = TEMPERATURE / 5
"""Largest learning rate of thresholds, whatever that of the weights.

Adam moves a parameter by about its learning rate a step, so what matters is the rate against the mask's temperature: further,
and a patch is passed before its gradient was felt. AS-ViT's 2e-5 is a fifth of its temperature of 1e-4. Its thresholds are
scores, though, and ours their multiples of the mean score, 196 times as large: with the paper's rate they would not move,
and 196 times the rate that fresh weights are trained with would be ten temperatures.
"""

JUDGED = 1024  # images of search-validation whose costs are reported


class Priced(Protocol):
    """What knows milliseconds, such as a `LatencyTable`."""

    def curve(self, arch: Arch) -> Curve:
        """Milliseconds of `arch` over the patches kept at each location."""


@dataclass(frozen=True)
class Budget:
    """What the mean cost over the images is to be."""

    curve: Curve
    unit: str  # ms or MACs
    target: float
    dense: float  # what the network costs when it keeps all
    least: float  # and with one patch of each image

    def described(self) -> dict[str, Any]:
        """What a run's config says of it."""
        return {"unit": self.unit, "target": self.target, "dense": self.dense}


def budget_of(arch: Arch, prices: Priced | None = None, target: float | None = None) -> Budget:
    """The budget of a network with pruning locations: milliseconds where there are prices, else MACs.

    In milliseconds an image costs what the network with thresholds does that keeps as many patches of every image.

    Args:
        arch: what is to be trained.
        prices: of a target, such as a latency table.
        target: mean cost over the images; by default what the network costs with the numbers of patches in its specs.

    Raises:
        InputError: the network drops nothing, or fuses or merges patches, or `target` is no cost, or more than it has with all patches.
        BudgetError: it costs more than `target` with one patch of each image.
        MissingLatency: `prices` lacks rows of the network.
    """
    if not arch.locations:
        raise InputError(
            f"network {arch.id} has no pruning location that could have a threshold; give one with token_prune blocks, such as "
            "asvit_deit_tiny"
        )
    if arch.rest != "dropped":
        raise InputError(
            f"patches of network {arch.id} are {arch.rest}, in fixed numbers, and thresholds are for dropped ones; train it without "
            "--thresholds, or leave rest out of its token_prune blocks"
        )
    places = [state for state in (arch.states[place] for place in arch.locations) if isinstance(state, Tokens)]
    total = places[0].grid[0] * places[0].grid[1]
    if prices is None:
        curve, unit = curve_of(arch, lambda spec, state: spec.macs(state), range(1, max(total, 2) + 1)), "MACs"
    else:
        curve, unit = prices.curve(arch.keeping(adaptive=True)), "ms"

    def cost(counts: list[int]) -> float:
        return float(curve([torch.tensor([count], dtype=torch.float64) for count in counts]))

    least, dense = (cost([count] * len(places)) for count in (1, total))
    keeps = [
        state.patches for state in (arch.states[place + 1] for place in arch.locations) if isinstance(state, Tokens)
    ]
    wanted = cost(keeps) if target is None else target
    if not 0 < wanted < float("inf"):
        raise InputError(f"a budget must be positive and finite, got {wanted:.4g}")
    if wanted < least:
        raise BudgetError(
            f"network {arch.id} takes {least:.4g} {unit} with one patch of each image, more than the budget of {wanted:.4g}"
        )
    if target is not None and target > dense:
        raise InputError(
            f"network {arch.id} takes {dense:.4g} {unit} with every patch kept, less than the budget of {target:.4g}: give a smaller one"
        )
    return Budget(curve, unit, wanted, dense, least)


def token_pruning(arch: Arch, recipe: Recipe, budget: Budget, teacher: Teacher | None) -> Objective:
    """The objective: cross-entropy, the batch's mean cost against the budget, and the divergence from a teacher if there is one.

    Patches are masked, so that thresholds and scores have gradients. The teacher's `weight` is of the divergence, beside a
    cross-entropy of weight 1.
    """

    def losses(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Iterator[Tensor]:
        assert isinstance(model, Network), "thresholds are of plain networks, not of wrapped ones"
        trace: list[Chosen] = []
        logits = model(resized(images, arch.image_size), trace)
        excess = budget_loss([chosen.counts for chosen in trace], budget.curve, budget.target) / budget.dense
        guide = None if teacher is None else teacher.scores(images, recipe, step)
        yield token_loss(
            logits,
            labels,
            guide,
            excess,
            budget_weight=BUDGET_WEIGHT,
            teacher_weight=0.0 if teacher is None else teacher.weight,
            temperature=1.0 if teacher is None else teacher.temperature,
            smoothing=recipe.smoothing,
        )

    return losses


def dense_teacher(arch: Arch, start: dict[str, Tensor], data: Data) -> Teacher:
    """The network that keeps every patch, with the weights `start`, as the paper's teacher."""
    state = arch.states[arch.locations[0]]
    assert isinstance(state, Tokens)
    dense = arch.keeping([state.grid[0] * state.grid[1]] * len(arch.locations), adaptive=False).build()
    dense.load_state_dict({name: start[name] for name in dense.state_dict()})
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return Teacher(Adapted(dense, (arch.image_size,) * 2, mean, std, data).eval(), arch.classes, temperature=1.0)


def learn_thresholds(
    arch: Arch,
    data: Data,
    recipe: Recipe,
    out: Path,
    budget: Budget,
    *,
    start: dict[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `arch` with thresholds at its pruning locations into the run folder `out`; returns the run's summary.

    Thresholds start where training images keep as many patches on average as the specs say, and at the end they are raised
    if the mean cost over those images is above the budget. The network that is saved names the mean numbers it then keeps.

    Args:
        arch: with pruning locations, adaptive or not.
        data: what it is trained on.
        recipe: how.
        out: the run's folder.
        budget: of `arch`.
        start: weights to start from; thresholds among them are not used.
        teacher: by default the dense network of the weights `start`, and none without these.
        resume: go on with what is in `out`.

    Returns:
        `val_acc`, on search-validation; `cost_unit`, `target_cost`, `dense_cost`; `held_cost`, the mean over training images;
        `mean_cost`, `p95_cost` and `kept`, mean numbers of patches, on images of search-validation; `thresholds`; `weights`.

    Raises:
        InputError: network, data, recipe or teacher do not fit each other, `out` holds another run, or several processes are at work.
    """
    arch = arch.keeping(adaptive=True)
    if recipe.sides or recipe.mixed_depth:
        raise InputError("thresholds are learned at one size and depth; leave out --sides and --mixed-depth")
    if processes() > 1:
        raise InputError("thresholds are learned in one process; start the command without torchrun")
    check_fit(arch, data, recipe, teacher)
    if teacher is None and start is not None:
        teacher = dense_teacher(arch, start, data)
    config = {**asked(arch, data, recipe, start, teacher), "budget": budget.described()}
    run = Run.start(out, "retrain", config, resume=resume)
    if run.summary is not None:
        return run.summary
    with run.locked():
        network, checkpoint, own = fresh_network(arch, recipe.seed), out / "checkpoint.pt", data.at(arch.image_size)
        network.load_state_dict({**network.state_dict(), **(start or {})})
        batches = calibration_batches(own, recipe.seed)
        if not checkpoint.exists():  # which has the thresholds that training has come to
            calibrate(network, arch, batches)
        rates = {f"blocks.{place}.threshold": THRESHOLD_LR for place in arch.locations}
        objective = token_pruning(arch, recipe, budget, teacher)
        fit(network, objective, data, recipe, checkpoint, f"train {out.name}", rates)
        held = hold(network, arch, batches, budget.curve, budget.target)
        run.save_network(_as_kept(network, arch, batches), network.state_dict())
        found = {"val_acc": accuracy(network, own, "val"), **_judged(network, arch, own, budget, held)}
        summary = run.finish({**found, "weights": str(out / "weights.safetensors")})
        checkpoint.unlink()
    return summary


def _as_kept(network: Network, arch: Arch, batches: list[tuple[Tensor, Tensor]]) -> Arch:
    """The network with the numbers of patches that it keeps on average."""
    return arch.keeping([max(1, round(mean)) for mean in counts_of(network, batches).double().mean(0).tolist()])


def _judged(network: Network, arch: Arch, data: Data, budget: Budget, held: float) -> dict[str, Any]:
    """What the images cost and keep, and the thresholds that decide on it."""
    counts = counts_of(network, list(data.loader("val", 250, limit=JUDGED))).double()
    costs = budget.curve([*counts.T.contiguous()])
    return {
        "cost_unit": budget.unit,
        "target_cost": budget.target,
        "dense_cost": budget.dense,
        "held_cost": held,
        "mean_cost": float(costs.mean()),
        "p95_cost": float(costs.quantile(0.95)),
        "kept": counts.mean(0).tolist(),
        "thresholds": [float(threshold.detach()) for threshold in thresholds_of(network, arch)],
    }
