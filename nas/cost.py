"""Parameters and multiply-accumulates of a network: in closed form, and as two public counters see them.

The counters run the built network, so that neither shares a mistake with the closed form. All three count
convolutions, linear layers and matmuls, and nothing else. A network that keeps numbers of patches by thresholds is
counted as the one that keeps their means.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # naming costs must not wait for torch
    from torch import Tensor, nn

    from search_spaces.arch import Arch

__all__ = ["macs", "macs_fvcore", "macs_thop", "params"]

UNCOUNTED = (
    "batch_norm layer_norm group_norm instance_norm adaptive_avg_pool2d upsample_bilinear2d"  # fvcore would count these
)
ZERO_OPS = (  # and leaves these out, rightly
    "add sub rsub mul div abs mean sum gelu silu softmax sigmoid avg_pool2d max_pool2d topk cumsum where le __or__ "
    "index_select linalg_vector_norm scatter scatter_add sort argsort max log clamp_min expand_as exp im2col pad square "
    "maximum hardsigmoid hardswish hardtanh _upsample_bilinear2d_aa"
)


def macs(arch: Arch) -> int:
    """Multiply-accumulates of convolutions, linear layers and matmuls for one image; all else counts zero."""
    return sum(spec.macs(state) for spec, state in arch.steps())


def params(arch: Arch) -> int:
    """Number of learned values, and of those fixed ones that releases hold as parameters: tables of sines, a performer's directions."""
    return sum(spec.params(state) for spec, state in arch.steps())


def macs_fvcore(arch: Arch) -> int:
    """Multiply-accumulates for one image as fvcore counts them, norms, pooling and resizing left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit.*")  # fvcore's import
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        from fvcore.nn import FlopCountAnalysis

        network = arch.keeping(adaptive=False).build().eval()
        analysis = FlopCountAnalysis(network, arch.example())
        analysis.set_op_handle(**{f"aten::{name}": _zero for name in UNCOUNTED.split()})
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        analysis.set_op_handle("aten::baddbmm", _matmul_plus)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = analysis.total() - _spreading(network, analysis.by_module())
    unknown = analysis.unsupported_ops().keys() - {f"aten::{name}" for name in ZERO_OPS.split()}
    assert not unknown, f"fvcore has no rule for {sorted(unknown)}: add one, or name them in ZERO_OPS"
    return int(total)


def _zero(inputs: list[Any], outputs: list[Any]) -> int:
    return 0  # a handle of None would leave fvcore's own rule in force


def _matmul_plus(inputs: list[Any], outputs: list[Any]) -> int:
    """A sum of something and the product of (B, m, k) with (B, k, n)."""
    from fvcore.nn.jit_handles import get_shape

    left, right = get_shape(inputs[1]), get_shape(inputs[2])
    return int(math.prod(left)) * int(right[-1])


def _spreading(network: nn.Module, counts: Mapping[str, int]) -> int:
    """What of the counts by module is interpolation written as matmuls, which is no more counted than a resizing."""
    from search_spaces.spread import SpreadPairs, SpreadTokens

    spreads = [name for name, part in network.named_modules() if isinstance(part, SpreadPairs | SpreadTokens)]
    return sum(int(counts[name]) for name in spreads)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both matmuls of attention: queries (B, H, N, d) with keys (B, H, M, d), and weights with values (B, H, M, v)."""
    from fvcore.nn.jit_handles import get_shape

    (*outer, count, width), keys, values = (get_shape(given) for given in inputs[:3])
    return int(math.prod(outer)) * int(count) * int(keys[-2]) * (int(width) + int(values[-1]))


def macs_thop(arch: Arch) -> int:
    """Multiply-accumulates for one image as thop counts them, with rules for the matmuls inside our modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*distutils.*")  # thop's import
        from thop import profile
    import torch

    network = arch.keeping(adaptive=False).build().eval()
    rules = _thop_rules()
    counted = (*rules, torch.nn.Conv2d, torch.nn.Linear)
    leaves = [
        part for part in network.modules() if not list(part.children()) and not isinstance(part, torch.nn.ModuleList)
    ]
    unknown = {type(part).__name__ for part in leaves if not isinstance(part, counted)}
    assert not unknown, f"thop has no rule for {sorted(unknown)}: add one to _thop_rules"
    with torch.no_grad():
        # On a copy, since thop leaves buffers behind.
        total, _ = profile(copy.deepcopy(network), (arch.example(),), custom_ops=rules, verbose=False)
    return int(total)


def _thop_rules() -> dict[type[nn.Module], Any]:
    """Forward hooks by module type: attention's matmuls, and zero for all that is not counted."""
    from torch import nn

    from search_spaces.blocks.attention import Attention, Cut
    from search_spaces.blocks.attention_pool import AttentionPoolModule
    from search_spaces.blocks.grid_attention import GridAttention
    from search_spaces.blocks.normalise import NormaliseModule
    from search_spaces.blocks.patch import ClassTokenModule
    from search_spaces.blocks.position import PositionModule
    from search_spaces.blocks.residual import QuickGelu, Residual
    from search_spaces.blocks.reuse import RelationReuse
    from search_spaces.blocks.side_tokens import SideTokensModule
    from search_spaces.blocks.streams import HeadAttention
    from search_spaces.blocks.token_prune import TokenPruneModule
    from search_spaces.blocks.tokens_to_token import Performer
    from search_spaces.resize import Resize
    from search_spaces.spread import SpreadPairs, SpreadTokens

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    zeros = (*norms, nn.AvgPool2d, nn.GELU, nn.SiLU, nn.ReLU, nn.ReLU6, nn.Identity)
    places = (PositionModule, ClassTokenModule, SideTokensModule, SpreadPairs, SpreadTokens, Resize)
    ours = (QuickGelu, Residual, Cut, NormaliseModule, *places)
    attention = {
        Attention: _count_attention,
        GridAttention: _count_grid_attention,
        HeadAttention: _count_head_attention,
        AttentionPoolModule: _count_attention_pool,
        TokenPruneModule: _count_token_prune,
        RelationReuse: _count_relations,
        Performer: _count_performer,
    }
    return {**attention, **dict.fromkeys((*zeros, *ours), _count_nothing)}


def _count_nothing(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    pass


def _count_attention(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Both matmuls in each group, and the projections, which thop does not look for below a module with a rule of its own."""
    batch, count, _ = inputs[0].shape
    groups = module.cuts[inputs[1] if len(inputs) > 1 else 0].groups
    matmuls = module.heads * count * (count // groups) * (module.key_dim + module.value_dim)
    linear = sum(layer.in_features * layer.out_features for layer in (module.qkv, module.proj))
    module.total_ops += batch * (matmuls + count * linear)


def _count_attention_pool(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Both matmuls of one query with the patches, and all layers, as thop does not look below."""
    x = getattr(inputs[0], "x", inputs[0])
    batch, count = len(x), x.shape[1] - module.prefix
    keys = count * module.kv.in_features * module.kv.out_features
    once = sum(
        layer.in_features * layer.out_features for layer in (module.q, module.proj, module.mlp.fc1, module.mlp.fc2)
    )
    module.total_ops += batch * (2 * count * module.proj.in_features + keys + once)


def _count_token_prune(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The weighted mean of all that may be fused, or the products of all keys that may be matched; nothing where patches are dropped."""
    (given,) = inputs
    if module.fuses:
        module.total_ops += given.x[:, module.prefix :].numel()
    elif module.merges and module.fewer:
        module.total_ops += given.keys[:, ::2].numel() * (given.keys.shape[1] // 2)


def _count_head_attention(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Both matmuls of queries (B, C, n) with keys (B, C, m)."""
    q, k, _ = inputs
    module.total_ops += 2 * q.numel() * k.shape[2]


def _count_relations(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Both 1x1 convolutions, which run as matmuls on all pairs of tokens."""
    x = inputs[0]
    module.total_ops += len(x) * x[0, 0].numel() * (module.fc1.weight.numel() + module.fc2.weight.numel())


def _count_performer(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Features of queries and keys, the matmuls with values and with the sum, and all layers."""
    batch, count, width = output.shape
    once = sum(layer.weight.numel() for layer in (module.kqv, module.proj, module.mlp.fc1, module.mlp.fc2))
    module.total_ops += batch * count * (once + len(module.directions) * (4 * width + 1))


def _count_grid_attention(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Both matmuls, and the 1x1 convolutions over the heads, of all pairs of places."""
    q, k, v = inputs
    pairs = q[0, 0].numel() * k[0, 0].numel()
    talking = 2 * module.heads**2 if module.talking_logits is not None else 0
    module.total_ops += len(q) * pairs * (q.shape[1] + v.shape[1] + talking)
