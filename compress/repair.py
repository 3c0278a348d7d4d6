"""A pruned ViT whose blocks make up for what those before them lost, by least squares on the network's own activations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.arch import Network
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.residual import Residual
from search_spaces.tokens import Kept

__all__ = ["repair"]

CHUNK = 32  # images that run at once
TINY = 1e-12  # in place of a scale of 0, which is divided by

State = Tensor | Kept


@torch.no_grad()
def repair(dense: Network, left: Mapping[float, Network], pairs: Mapping[int, int | None], images: Tensor) -> None:
    """Solve the second layers of attention and MLP anew, block after block, so that the stream comes nearest to the dense network's.

    What a block gets is what the blocks before it give, solved already; what it is to give is the dense network's stream, at the
    tokens that are left. So a block also makes up for one that is gone.

    Args:
        dense: with whole blocks, of which no token is dropped, of the same image size and width; in eval mode.
        left: what is left of it, in eval mode; each is changed in place, by the ridge that it is under: how far its weights are drawn
            towards what they are, of the mean second moment. All are of one architecture, in which patches may be dropped or fused, not merged.
        pairs: by the position of a block of attention in `dense` that in `left`, None where it is left out.
        images: (B, channels, H, W).
    """
    whole: list[Tensor] = list(torch.split(images, CHUNK))
    states: dict[float, list[State]] = {ridge: list(whole) for ridge in left}
    done = 0  # blocks of `left` that have run
    for position, block in enumerate(dense.blocks):
        if position not in pairs:
            whole = [block(x) for x in whole]
            continue
        assert isinstance(block, MB3DModule)
        place = pairs[position]
        if place is not None:
            for ridge, network in left.items():
                states[ridge] = [_through(network, x, done, place) for x in states[ridge]]
            done = place + 1
        middle = [block.ls1(x, block.token_mixer(block.norm1(x))[0]) for x in whole]
        whole = [block.ls2(x, block.mlp(block.norm2(x))) for x in middle]
        if place is None:
            continue
        for ridge, network in left.items():
            own, step = network.blocks[place], next(step for step in network.schedule if step.position == place)
            assert isinstance(own, MB3DModule)
            states[ridge] = _solved(own, states[ridge], middle, whole, step.scored, ridge)


def _through(network: Network, x: State, start: int, stop: int) -> State:
    """The state after the blocks from `start` up to `stop`, none of which is one of attention."""
    for block in network.blocks[start:stop]:
        x = block(x)
    return x


def _solved(
    block: MB3DModule,
    state: Sequence[State],
    middle: Sequence[Tensor],
    after: Sequence[Tensor],
    scored: bool,
    ridge: float,
) -> list[State]:
    """What a block gives once its second layers are solved: what it gets plus attention near `middle`, and that plus the MLP near `after`."""
    inputs = [x.x if isinstance(x, Kept) else x for x in state]
    kept = [x if isinstance(x, Kept) else None for x in state]
    contexts, scores = [], []
    for x, own in zip(inputs, kept, strict=True):
        seen: list[Tensor] = []
        handle = block.token_mixer.proj.register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0])
        )
        scores.append(block.token_mixer(block.norm1(x), 0, own, scored)[1])
        handle.remove()
        contexts.append(seen[0])
    prefix = block.token_mixer.prefix
    _refit(block.token_mixer.proj, block.ls1, contexts, inputs, _there(middle, kept, prefix), ridge)
    mixed = [block.ls1(x, block.token_mixer.proj(one)) for x, one in zip(inputs, contexts, strict=True)]
    hidden = [_hidden(block, x) for x in mixed]
    _refit(block.mlp.fc2, block.ls2, hidden, mixed, _there(after, kept, prefix), ridge)
    outputs = [block.ls2(x, block.mlp.fc2(one)) for x, one in zip(mixed, hidden, strict=True)]
    found: list[State] = []
    for x, own, score in zip(outputs, kept, scores, strict=True):
        if own is not None:
            found.append(replace(own, x=x, score=score, chosen=None))
        else:
            found.append(Kept(x, score=score) if scored else x)
    return found


def _hidden(block: MB3DModule, x: Tensor) -> Tensor:
    """What goes into the MLP's second layer."""
    seen: list[Tensor] = []
    handle = block.mlp.fc2.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    block.mlp(block.norm2(x))
    handle.remove()
    return seen[0]


def _there(wanted: Sequence[Tensor], kept: Sequence[Kept | None], prefix: int) -> list[Tensor]:
    """The dense network's tokens that are left, in the order in which they are; a fused one, which is none of them, would come last."""
    found = []
    for tokens, own in zip(wanted, kept, strict=True):
        if own is None or own.places is None:
            found.append(tokens)
            continue
        places = own.places[:, :, None].expand(-1, -1, tokens.shape[2]) + prefix
        found.append(torch.cat([tokens[:, :prefix], tokens.gather(1, places)], 1))
    return found


def _refit(
    layer: nn.Linear,
    join: Residual,
    inputs: Sequence[Tensor],
    skips: Sequence[Tensor],
    wanted: Sequence[Tensor],
    ridge: float,
) -> None:
    """Solve a layer so that what it gives, joined with the skips, is nearest to what is wanted."""
    width = layer.in_features + 1
    moment = torch.zeros(width, width, dtype=torch.float64, device=layer.weight.device)
    target = torch.zeros(width, layer.out_features, dtype=torch.float64, device=layer.weight.device)
    nothing = torch.zeros(1, device=layer.weight.device)
    for whole, rest_of, goal in zip(inputs, skips, wanted, strict=True):
        x, skip = whole[:, : goal.shape[1]], rest_of[:, : goal.shape[1]]
        rows = F.pad(x.flatten(0, -2), (0, 1), value=1.0)
        scale = join(nothing, torch.ones_like(skip[:1, :1])).flatten()  # what the branch is multiplied by
        rest = ((goal - join(skip, torch.zeros_like(skip))) / torch.where(scale == 0, TINY, scale)).flatten(0, -2)
        moment += (rows.T @ rows).double()
        target += (rows.T @ rest).double()
    old = torch.cat([layer.weight.T, layer.bias[None]]).double()
    pull = ridge * moment.diagonal().mean()
    held = moment + pull * torch.eye(width, dtype=moment.dtype, device=moment.device)
    new = torch.cholesky_solve(target + pull * old, torch.linalg.cholesky(held)).to(layer.weight.dtype)
    layer.weight.copy_(new[:-1].T)
    layer.bias.copy_(new[-1])
