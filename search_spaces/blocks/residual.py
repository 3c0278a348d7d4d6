"""Parts that residual blocks share: how skip and branch are joined, and the two forms of the feed-forward branch."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

__all__ = [
    "FORMS",
    "MLPS",
    "ConvMlp",
    "Mlp",
    "QuickGelu",
    "Residual",
    "fewer",
    "gates",
    "hidden_width",
    "residual_dims",
    "residual_params",
]

MOST = 1e9  # hidden channels of a branch
FORMS = ("layer_scale", "coefficients", "plain")


def hidden_width(channels: int, ratio: float) -> int:
    """Hidden channels of a feed-forward branch: `ratio * channels`, a fraction of a channel left out as SReT does.

    Raises:
        ValueError: that is less than one, or beyond all reason.
    """
    hidden = channels * min(ratio, MOST) + 1e-6  # 0.7 * 10 is a hair below 7
    if not 1 <= hidden < MOST:
        raise ValueError(f"FFN ratio times width must be from 1 to {MOST:.0e}, got {min(ratio, MOST):g} x {channels}")
    return int(hidden)


def fewer(size: int, share: float) -> int:
    """`share` of a size, rounded up and at least one less, but not below 1."""
    return max(1, min(size - 1, math.ceil(size * share)))


def check_form(form: str) -> None:
    """Refuse a residual form that is not in `FORMS`."""
    if form not in FORMS:
        raise ValueError(f"residual must be one of {', '.join(FORMS)}, got {form!r}")


def residual_params(form: str, channels: int) -> int:
    """Learned values of one `Residual`."""
    return {"layer_scale": channels, "coefficients": 2, "plain": 0}[form]


def residual_dims(form: str) -> tuple[tuple[str, int], ...]:
    """What a row's key says of the form: nothing for layer scale."""
    return (("residual", FORMS.index(form)),) if FORMS.index(form) else ()


class Residual(nn.Module):
    """Joins skip and branch, maps or tokens alike.

    layer_scale: `skip + gamma * branch`, gamma per channel from `init` (CaiT, arXiv 2103.17239).
    coefficients: `a * skip + b * branch`, two learned scalars from 1 (SReT, arXiv 2111.05297, section 3.2).
    plain: `skip + branch`.
    """

    def __init__(self, form: str, channels: int, init: float) -> None:
        super().__init__()
        self.form = form
        if form == "layer_scale":
            self.gamma = nn.Parameter(torch.full((channels,), float(init)))  # JSON has 1.0 as 1
        elif form == "coefficients":
            self.skip, self.branch = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        if self.form == "layer_scale":
            return skip + branch * (self.gamma[:, None, None] if branch.ndim == 4 else self.gamma)
        return self.skip * skip + self.branch * branch if self.form == "coefficients" else skip + branch


class ConvMlp(nn.Module):
    """1x1 conv - BN - GELU - 1x1 conv - BN on a map (B, C, H, W).

    `depthwise` puts a 3x3 depthwise conv - BN - GELU in between (EfficientFormerV2, arXiv 2212.08059, section 3.1).
    """

    def __init__(self, channels: int, hidden: int, depthwise: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        self.norm_mid = nn.BatchNorm2d(hidden) if depthwise else None
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.fc1(x)))
        if self.mid is not None and self.norm_mid is not None:
            x = self.act(self.norm_mid(self.mid(x)))
        out: Tensor = self.norm2(self.fc2(x))
        return out


class QuickGelu(nn.Module):
    """`x sigmoid(1.702 x)`, as CLIP has it (arXiv 2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


MLPS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGelu,
    "swiglu": nn.SiLU,  # of the gate, which multiplies the other half (arXiv 2002.05202)
    "silu": nn.SiLU,
}
"""What stands between the two layers of a feed-forward branch on tokens."""


def gates(form: str) -> int:
    """How many outputs of the first layer each hidden neuron takes."""
    return 2 if form == "swiglu" else 1


class Mlp(nn.Module):
    """Linear - GELU, or another of `MLPS` - linear on tokens (B, N, C); gated, the first layer gives all gates, then all values.

    `inputs`: channels of its input, where they are not those of its output.
    """

    def __init__(self, channels: int, hidden: int, form: str = "gelu", inputs: int | None = None) -> None:
        super().__init__()
        self.gated = gates(form) > 1
        self.fc1 = nn.Linear(channels if inputs is None else inputs, gates(form) * hidden)
        self.act = MLPS[form]()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.neurons(x))
        return out

    def neurons(self, x: Tensor) -> Tensor:
        """What the hidden neurons give, (B, N, hidden)."""
        x = self.fc1(x)
        if self.gated:
            gate, value = x.chunk(2, -1)
            gated: Tensor = self.act(gate) * value
            return gated
        out: Tensor = self.act(x)
        return out
