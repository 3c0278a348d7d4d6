"""A ViT with a narrower embedding: the directions of the residual stream that say most, and what reads and writes it solved anew.

All that reads the stream is a LayerNorm with a linear layer behind it. The norm takes the mean over the channels away, so it may be
away from the start; then the stream can be turned without any difference, and directions that hold little can be left out (as SliceGPT,
arXiv 2401.15024, does with RMSNorm). `narrow` channels hold `narrow - 1` directions: a stream whose channels have mean 0 is what
the narrower LayerNorm leaves as it is. The linear layers that read are solved by least squares.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.slicing import weights_of
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position, Stem
from search_spaces.spaces.frames import Frame, in_frame

__all__ = ["Narrowing", "narrowings"]

RIDGE = 1e-6  # of the mean second moment of what is solved with


@dataclass(frozen=True)
class Narrowing:
    """How a network is made narrower."""

    turn: Tensor  # (narrow, channels) of the stream
    reads: Mapping[
        str, Tensor
    ]  # by the norm's name: (narrow + 1, channels), from the narrower norm's output and 1 to the norm's own

    def __call__(self, arch: Arch, weights: Mapping[str, Tensor]) -> tuple[Arch, dict[str, Tensor]]:
        """The narrower network and its weights."""
        found: dict[str, Tensor] = {}
        first = next(position for position, spec in enumerate(arch.blocks) if isinstance(spec, Patch))
        for position, spec in enumerate(arch.blocks):
            own = weights_of(weights, position)
            narrow = self._of(spec, own, f"blocks.{position}") if position >= first else own  # a stem stays
            found |= {f"blocks.{position}.{name}": tensor.to(own[name].dtype) for name, tensor in narrow.items()}
        return in_frame(arch, Frame(arch.image_size, len(self.turn))), found

    def _of(self, spec: object, own: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        turn = self.turn.to(next(iter(own.values())))
        if isinstance(spec, Stem):  # before the stream
            return own
        if isinstance(spec, Patch):
            return {part: torch.tensordot(turn, tensor, 1) for part, tensor in own.items()}
        if isinstance(spec, ClassToken | Position):
            return {part: tensor @ turn.T for part, tensor in own.items()}
        new = dict(own)
        if isinstance(spec, Head):
            new |= self._read(own, f"{name}.norm", "norm", "head")
            return new | (self._read(own, f"{name}.norm", "norm", "head_dist") if spec.distilled else {})
        assert isinstance(spec, MB3D)
        new |= self._read(own, f"{name}.norm1", "norm1", "token_mixer.qkv")
        new |= self._read(own, f"{name}.norm2", "norm2", "mlp.fc1")
        for scale, layer in (("ls1.gamma", "token_mixer.proj"), ("ls2.gamma", "mlp.fc2")):
            gamma = own.get(scale, torch.ones_like(own["norm1.weight"]))
            new[f"{layer}.weight"] = turn @ (gamma[:, None] * own[f"{layer}.weight"])
            new[f"{layer}.bias"] = turn @ (gamma * own[f"{layer}.bias"])
            new |= {scale: torch.ones_like(turn[:, 0])} if scale in own else {}
        return new

    def _read(self, own: Mapping[str, Tensor], name: str, norm: str, layer: str) -> dict[str, Tensor]:
        """A norm without scale and shift, and the layer behind it with both."""
        weight, reads = own[f"{layer}.weight"].double(), self.reads[name]
        scaled = weight * own[f"{norm}.weight"].double()
        bias = own[f"{layer}.bias"].double() + weight @ own[f"{norm}.bias"].double() + scaled @ reads[-1]
        ones = torch.ones(len(reads) - 1)
        return {
            f"{norm}.weight": ones,
            f"{norm}.bias": torch.zeros_like(ones),
            f"{layer}.weight": scaled @ reads[:-1].T,
            f"{layer}.bias": bias,
        }


def _norms(network: Network) -> dict[str, nn.LayerNorm]:
    """The norms that read the stream."""
    found = {}
    for position, (spec, block) in enumerate(zip(network.arch.blocks, network.blocks, strict=True)):
        names = ("norm1", "norm2") if isinstance(spec, MB3D) else ("norm",) if isinstance(spec, Head) else ()
        for name in names:
            norm = getattr(block, name)
            assert isinstance(norm, nn.LayerNorm)
            found[f"blocks.{position}.{name}"] = norm
    return found


@contextmanager
def _watched(network: Network, see: Callable[[str, Tensor, float], None]) -> Iterator[None]:
    """Meanwhile `see` gets what goes into each norm, (tokens, channels), by the norm's name, and its eps."""

    def hook(name: str, eps: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: see(name, given[0].flatten(0, -2), eps)

    handles = [norm.register_forward_pre_hook(hook(name, norm.eps)) for name, norm in _norms(network).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def narrowings(network: Network, batches: Iterable[Tensor], narrow: Sequence[int]) -> dict[int, Narrowing]:
    """How a ViT is given so many channels, by the activations of some images.

    Args:
        network: in eval mode, `search_spaces.spaces.frames.narrowable`.
        batches: of images (B, channels, H, W).
        narrow: widths below the network's.
    """
    given = list(batches)
    names = _norms(network)
    channels = next(iter(names.values())).normalized_shape[0]
    streams = {name: torch.zeros(channels, channels, dtype=torch.float64) for name in names}

    def see_stream(name: str, x: Tensor, eps: float) -> None:
        normed = F.layer_norm(x, (channels,), eps=eps)
        streams[name] += (normed.T @ normed).double()

    with _watched(network, see_stream):
        for images in given:
            network(images)
    # Of each norm alike: the last sees a token of an image where others see all.
    moment = torch.stack([one / one.diagonal().sum() for one in streams.values()]).sum(0)
    mean = torch.full_like(moment, 1 / channels)  # the direction that norms take away comes last
    vectors = torch.linalg.eigh(moment - mean).eigenvectors.flip(1)
    turns = {width: _flat(width) @ vectors[:, : width - 1].T for width in narrow}
    inner = {
        (name, width): torch.zeros(width + 1, width + 1, dtype=torch.float64) for name in names for width in narrow
    }
    outer = {key: torch.zeros(len(one), channels, dtype=torch.float64) for key, one in inner.items()}

    def see_both(name: str, x: Tensor, eps: float) -> None:
        wanted = F.layer_norm(x, (channels,), eps=eps)
        for width, turn in turns.items():
            normed = F.layer_norm(x @ turn.T.to(x.dtype), (width,), eps=eps)
            rows = F.pad(normed, (0, 1), value=1.0)
            inner[name, width] += (rows.T @ rows).double()
            outer[name, width] += (rows.T @ wanted).double()

    with _watched(network, see_both):
        for images in given:
            network(images)
    return {
        width: Narrowing(turn, {name: _solved(inner[name, width], outer[name, width]) for name in names})
        for width, turn in turns.items()
    }


def _flat(width: int) -> Tensor:
    """(width, width - 1) orthonormal columns whose entries have mean 0."""
    shifted = torch.eye(width, dtype=torch.float64) - 1 / width
    vectors: Tensor = torch.linalg.eigh(shifted).eigenvectors
    return vectors[:, 1:]


def _solved(inner: Tensor, outer: Tensor) -> Tensor:
    ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
    found: Tensor = torch.linalg.solve(inner + ridge, outer)
    return found
