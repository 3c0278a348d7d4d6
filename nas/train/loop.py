"""The training loop that the supernet and the winners share: timm's optimizers, cosine schedule, a checkpoint after every epoch."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.data import LARGEST, Data
from nas.files import atomic_write
from nas.processes import accelerator as start_accelerator
from nas.processes import processes
from nas.progress import progress
from nas.train.scales import batch_at, scaled_batches
from search_spaces.arch import Network
from search_spaces.errors import InputError
from search_spaces.resize import resized
from search_spaces.states import Map

__all__ = ["Objective", "Recipe", "check_batch", "check_norms", "check_shared", "fit"]

ADAMW = "adamw"
SMALLEST_SIDE = 32  # pixels: networks shrink their images up to 32-fold

Objective = Callable[[nn.Module, Tensor, Tensor, int], Iterator[Tensor]]
"""Model, images (B, C, H, W), labels and step -> losses, each of which is back-propagated before the next is asked for.

Labels are classes (B,) or, where images are mixed, the share of each class (B, classes). Where the recipe has `sides`, H and
W are the side that was drawn for the batch.
"""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: int
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps over which the learning rate rises
    smoothing: float = 0.1  # label smoothing
    clip: float = 1.0  # largest gradient norm
    augment: bool = True
    seed: int = 0
    ema: float = 0.0  # decay of the mean of weights and BN statistics that becomes the result; 0: the last step's
    mixup: float = 0.0  # alpha of mixing whole images; 0: off
    cutmix: float = 0.0  # alpha of pasting boxes of other images; 0: off. With both on, a batch gets either
    sides: tuple[int, ...] = ()  # of the images, one is drawn for each batch; empty: the size of the data
    mixed_depth: bool = False  # each step trains the network with a number of loops drawn from 1 to its own
    opt: str = ADAMW  # timm's name of the optimizer

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise InputError(
                f"epochs, batch size and learning rate must be positive, got {self.epochs}, {self.batch_size}, {self.lr}"
            )
        for name, value in (("the decay of averaged weights", self.ema), ("label smoothing", self.smoothing)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be at least 0, which turns it off, and below 1, got {value}")
        alphas = ("alpha of mixup", self.mixup), ("alpha of cutmix", self.cutmix)
        for name, value in (("weight decay", self.weight_decay), *alphas):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be at least 0, which turns it off, and finite, got {value}")
        if any(not SMALLEST_SIDE <= side <= LARGEST for side in self.sides) or len({*self.sides}) < len(self.sides):
            wanted = f"different whole numbers from {SMALLEST_SIDE} to {LARGEST}"
            raise InputError(f"sides of images must be {wanted}, got {','.join(map(str, self.sides))}")
        if self.opt != ADAMW:  # which needs no timm
            _check_optimizer(self.opt)

    def described(self) -> dict[str, Any]:
        """The settings as runs keep them; the usual optimizer is left out, so that runs from before there were others go on."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("opt", ADAMW)}

    def draw_seed(self, epoch: int) -> int:
        """What the order, the augmentation and the sides of an epoch are drawn from."""
        return int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])

    def batches(self, data: Data, epoch: int) -> list[tuple[int, int]]:
        """Side and number of images of each batch of an epoch; without `sides` the last partial batch is dropped."""
        count = data.size("train")
        if not self.sides:
            return [(data.image_size, self.batch_size)] * (count // self.batch_size)
        return scaled_batches(count, data.image_size, self.batch_size, self.sides, self.draw_seed(epoch))

    def least_images(self, data: Data) -> int:
        """Images of the smallest batch."""
        return min(batch_at(side, data.image_size, self.batch_size) for side in self.sides or (data.image_size,))

    def steps(self, data: Data) -> int:
        """Optimiser steps on a data set."""
        return sum(len(self.batches(data, epoch)) for epoch in range(self.epochs))


def _check_optimizer(name: str) -> None:
    """Refuse what timm does not know, those of other packages and of second derivatives, and what draws from no seed of ours."""
    from timm.optim import get_optimizer_info, list_optimizers

    names = map(str, list_optimizers(exclude_filters=["fused*", "bnb*", "kron*"]))  # of apex, bitsandbytes; kron draws
    known = [one for one in names if not get_optimizer_info(one).second_order]
    if name not in known:
        close = ", ".join(get_close_matches(name, known, cutoff=0.0))
        raise InputError(f"no optimizer {name!r} to train with; timm has {len(known)}, among them {close}")


def check_batch(recipe: Recipe, data: Data) -> None:
    """Refuse batches of more images than there are to train on.

    Raises:
        InputError: the training split is smaller than one batch.
    """
    count = data.size("train")
    if count < recipe.batch_size:
        raise InputError(
            f"{data.name} has {count} training images, fewer than a batch of {recipe.batch_size}; give a smaller --batch-size"
        )


def check_norms(model: nn.Module, recipe: Recipe, data: Data) -> None:
    """Refuse steps of one image for networks that normalise features, or maps of one place, over the images of a step.

    Raises:
        InputError: a process would have such a step.
    """
    if recipe.least_images(data) // processes() > 1:
        return
    maps = [state for state in model.arch.states if isinstance(state, Map)] if isinstance(model, Network) else []
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d) if any(state.positions == 1 for state in maps) else nn.BatchNorm1d
    if any(isinstance(part, kinds) for part in model.modules()):
        raise InputError(
            "the network normalises over the images of a step, which then must be 2 or more; raise --batch-size"
        )


def fit(
    model: nn.Module,
    objective: Objective,
    data: Data,
    recipe: Recipe,
    checkpoint: Path,
    label: str,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Train `model` in place, going on from `checkpoint` if it exists.

    All that is drawn comes from (recipe.seed, epoch or step), so a killed run ends with the weights of an uninterrupted one.
    With `recipe.ema` the model ends with the mean of its weights over the steps; the decay rises to the one asked for
    (timm's warm-up), so that the fresh weights of a short training are forgotten. `rates` are the largest learning rates
    of the parameters so named; all others have the recipe's, and their gradients are clipped apart from those.
    Processes that torchrun started train together: each takes its share of every batch, and the first writes the checkpoint.

    Raises:
        InputError: the training split is smaller than one batch, a batch of one image meets a norm over images, or the loss is no
            longer finite.
    """
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    check_batch(recipe, data)
    accelerator = start_accelerator()
    check_norms(model, recipe, data)
    steps = recipe.steps(data)
    groups = _groups(model, recipe, rates)
    fused: Any = {"fused": True} if recipe.opt == ADAMW else {}
    optimizer = create_optimizer_v2(groups, recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, **fused)
    schedule = _schedule(optimizer, recipe, steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    clipped = [weight for name, weight in plain.named_parameters() if name not in rates]
    averaged = ModelEmaV3(plain, recipe.ema, use_warmup=True) if recipe.ema else None
    parts = {"model": plain, "optimizer": optimizer} | ({} if averaged is None else {"ema": averaged.module})
    first = _restore(checkpoint, parts)
    step = sum(len(recipe.batches(data, epoch)) for epoch in range(first))
    with progress(label, steps, done=step) as bar:
        for epoch in range(first, recipe.epochs):
            model.train()
            for images, labels in _batches(data, recipe, epoch, step, accelerator):
                schedule.step_update(step)
                optimizer.zero_grad()
                total = 0.0
                for loss in objective(model, images, labels, step):
                    accelerator.backward(loss)
                    total += float(loss.detach())
                if not np.isfinite(total):
                    raise InputError(f"{label}: the loss is no longer finite at step {step}; lower the learning rate")
                accelerator.clip_grad_norm_(clipped, recipe.clip)
                optimizer.step()
                if averaged is not None:
                    averaged.update(plain, step + 1)
                step += 1
                bar.set_postfix(loss=f"{total:.3f}", refresh=False)
                bar.update()
            if accelerator.is_main_process:
                _save(checkpoint, parts, epoch + 1)
            accelerator.wait_for_everyone()
    if averaged is not None:
        plain.load_state_dict(averaged.module.state_dict())


def check_shared(recipe: Recipe) -> None:
    """Refuse a recipe that several processes cannot train by together.

    Raises:
        InputError: there are several, and images or depth change from batch to batch, or a batch cannot be shared out.
    """
    if processes() > 1 and (recipe.sides or recipe.mixed_depth):
        raise InputError("--sides and --mixed-depth are of one process; start the command without torchrun")
    if recipe.batch_size % processes():
        raise InputError(
            f"{processes()} processes cannot share a batch of {recipe.batch_size} images; give --batch-size a multiple of them"
        )


def _groups(model: nn.Module, recipe: Recipe, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters by what is theirs in the optimizer: biases and scalars have no weight decay, those in `rates` their own rate."""
    from timm.optim import param_groups_weight_decay

    named = dict(model.named_parameters())
    apart = {id(named[name]): rate for name, rate in rates.items()}
    groups: list[dict[str, Any]] = []
    for group in param_groups_weight_decay(model, recipe.weight_decay):
        groups.append({**group, "params": [part for part in group["params"] if id(part) not in apart]})
        own = [part for part in group["params"] if id(part) in apart]
        groups += [{**group, "params": [part], "lr_scale": apart[id(part)] / recipe.lr} for part in own]
    return groups


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """A cosine from the recipe's learning rate to a hundredth of it, after the warm-up."""
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=recipe.lr / 100,
        warmup_t=int(recipe.warmup * steps),
        warmup_lr_init=recipe.lr / 100,
        t_in_epochs=False,
    )


def _batches(data: Data, recipe: Recipe, epoch: int, first: int, accelerator: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of an epoch, whose first step is `first`, as the objective gets them: resized and mixed.

    Of several processes each gets its share of every batch, and mixes that by draws of its own.
    """
    from accelerate.data_loader import prepare_data_loader

    from nas.train.mixing import mixed, mixer

    plan = recipe.batches(data, epoch)
    source, sizes = (data.native(), [size for _, size in plan]) if recipe.sides else (data, recipe.batch_size)
    loader = source.loader("train", sizes, seed=recipe.draw_seed(epoch), augment=recipe.augment)
    count, own = accelerator.num_processes, accelerator.process_index
    if count > 1:
        loader = prepare_data_loader(loader, num_processes=count, process_index=own, split_batches=True)
    mix = mixer(recipe.mixup, recipe.cutmix, max(data.classes, 1)) if recipe.mixup or recipe.cutmix else None
    # A recipe may end an epoch early.
    shorter = not recipe.sides and len(plan) < data.size("train") // recipe.batch_size
    planned = islice(loader, len(plan)) if shorter else loader
    for step, ((side, _), (images, labels)) in enumerate(zip(plan, planned, strict=True), first):
        images, labels = resized(images.to(accelerator.device), side), labels.to(accelerator.device)
        if not data.labelled:  # all are of one class then, of which nothing is learned
            labels = torch.zeros_like(labels)
        yield (images, labels) if mix is None else mixed(images, labels, mix, recipe.seed, step * count + own)


def _save(path: Path, parts: Mapping[str, Any], epoch: int) -> None:
    buffer = (
        io.BytesIO()
    )  # torch reports a full disk as a RuntimeError; writing bytes ourselves reports it as what it is
    torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
    atomic_write(path, buffer.getvalue())


def _restore(path: Path, parts: Mapping[str, Any]) -> int:
    """Load a checkpoint into model, optimizer and averaged weights; the number of finished epochs, 0 without a checkpoint."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        raise InputError(f"{path} is damaged; remove it to train from the start") from error
    for name, part in parts.items():
        part.load_state_dict(state[name])
    epoch: int = state["epoch"]
    return epoch
