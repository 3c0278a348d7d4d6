"""Weights of linear layers laid out once for oneDNN's kernels, instead of on every call."""

import copy

import torch
from torch import Tensor, nn

from search_spaces.arch import Network
from search_spaces.blocks.residual import Mlp

__all__ = ["prepack"]

ROWS = 256  # that the layout is chosen for; what suits it suits 64 to thousands


class PrepackedLinear(nn.Module):
    """A linear layer (..., in) -> (..., out) and what follows it, for inference on a CPU; its weight is in no state dict."""

    def __init__(self, linear: nn.Linear, follows: str = "none") -> None:
        """`follows` is "none", or "gelu", which is worked out before the result leaves the registers."""
        super().__init__()
        self.follows = follows
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """What the linear layer gives; no gradient goes through."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.follows, [], "none")
        return out


def prepack(network: Network) -> Network:
    """A copy of the network for inference on a CPU, in eval mode, whose linear layers are `PrepackedLinear`.

    For few tokens a good part of a linear layer's time is that its weight is brought into the order in which the kernel reads it.
    The operators are those that `torch.compile` uses for frozen weights. Without oneDNN the copy is an ordinary one, and so are
    layers on a GPU and in other types than float32.
    """
    packed = copy.deepcopy(network).eval()
    for parent in packed.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _fits(child.weight):
                fused = isinstance(parent, Mlp) and child is parent.fc1 and _is_gelu(parent.act)
                setattr(parent, name, PrepackedLinear(child, "gelu" if fused else "none"))
                if fused:
                    parent.act = nn.Identity()
    return packed


def _is_gelu(act: nn.Module) -> bool:
    """Whether it is what oneDNN knows as gelu."""
    return isinstance(act, nn.GELU) and act.approximate == "none"


def _fits(weight: Tensor) -> bool:
    has_onednn: bool = torch._C._has_mkldnn
    return has_onednn and weight.device.type == "cpu" and weight.dtype == torch.float32
