"""Second moments of what goes on inside a ViT's blocks, summed over calibration images; see `compress.reduction`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.arch import Network
from search_spaces.blocks import MB3D
from search_spaces.blocks.attention import Attention
from search_spaces.blocks.mb3d import MB3DModule

__all__ = ["BlockMoments", "collect"]


@dataclass
class BlockMoments:
    """Of one block, float64: sums over images and tokens."""

    queries: Tensor  # (heads, d, d)
    keys: Tensor  # (heads, d, d), of the keys less their mean over the image's tokens
    context: Tensor  # (heads * v + 1, ...) of attention times values, and a constant 1
    neurons: Tensor  # (hidden + 1, ...) of what the MLP's hidden neurons give, and a constant 1

    @staticmethod
    def nothing(spec: MB3D, hidden: int, device: torch.device) -> "BlockMoments":
        """Before the first image."""
        heads, d, wide = spec.heads, spec.key_dim, spec.heads * spec.value_dim + 1
        shapes = ((heads, d, d), (heads, d, d), (wide, wide), (hidden + 1, hidden + 1))
        return BlockMoments(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))


def _moment(x: Tensor) -> Tensor:
    """(d + 1, d + 1) of the rows (..., d) of x with a constant 1 behind each; products in the type of x, sums in float64."""
    rows = nn.functional.pad(x.flatten(0, -2), (0, 1), value=1.0)
    return (rows.T @ rows).double()


@contextmanager
def _watched(network: Network, moments: dict[int, BlockMoments]) -> Iterator[None]:
    """Meanwhile every image that goes through the network adds to the moments."""
    handles = []

    def watch(attention: Attention, mlp_in: nn.Module, found: BlockMoments) -> None:
        def see_qkv(module: nn.Module, given: tuple[Tensor, ...], qkv: Tensor) -> None:
            q, k, _ = attention._split(torch.unflatten(qkv, -1, (attention.heads, -1)).transpose(-3, -2))
            k = k - k.mean(-2, keepdim=True)
            found.queries += torch.einsum("bhnd,bhne->hde", q, q).double()
            found.keys += torch.einsum("bhnd,bhne->hde", k, k).double()

        def see_context(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.context += _moment(given[0])

        def see_neurons(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.neurons += _moment(given[0])

        handles.append(attention.qkv.register_forward_hook(see_qkv))
        handles.append(attention.proj.register_forward_pre_hook(see_context))
        handles.append(mlp_in.register_forward_pre_hook(see_neurons))

    for position, found in moments.items():
        block = network.blocks[position]
        assert isinstance(block, MB3DModule)
        watch(block.token_mixer, block.mlp.fc2, found)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect(network: Network, batches: Iterable[Any]) -> dict[int, BlockMoments]:
    """Moments of every MB3D block, by its position.

    Args:
        network: a dense ViT; it is run in eval mode and comes back in the mode it was in.
        batches: of images (B, channels, H, W), or tuples that begin with them.

    Raises:
        ValueError: no image was given.
    """
    device = next(network.parameters()).device
    moments: dict[int, BlockMoments] = {}
    for position, spec in enumerate(network.arch.blocks):
        if isinstance(spec, MB3D):
            block = network.blocks[position]
            assert isinstance(block, MB3DModule)
            moments[position] = BlockMoments.nothing(spec, block.mlp.fc2.in_features, device)
    training, seen = network.training, 0
    network.eval()
    try:
        with _watched(network, moments):
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                network(images.to(device))
                seen += len(images)
    finally:
        network.train(training)
    if not seen:
        raise ValueError("calibration needs at least one image")
    return moments
