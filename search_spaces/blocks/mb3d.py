"""MB3D, the token meta-block: attention and MLP (EfficientFormer, arXiv 2206.01191, eq. 4), recursive and in groups (SReT, 2111.05297).

In a later stage of a cascade it may reuse what the stage before knows (DVT, arXiv 2105.15075).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search_spaces.blocks.attention import Attention, Cut
from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.residual import (
    MLPS,
    Mlp,
    Residual,
    check_form,
    fewer,
    gates,
    hidden_width,
    residual_dims,
    residual_params,
)
from search_spaces.blocks.reuse import REUSES, FeatureReuse, Layer, Relations
from search_spaces.grouping import ORDERS
from search_spaces.regrid import Grid, offsets
from search_spaces.states import Map, Scorer, State, Tokens, tokens_of
from search_spaces.tokens import Kept

__all__ = ["MB3D", "RECURSIONS"]

RECURSIONS = ("internal", "external")


class Projection(nn.Module):
    """SReT's non-linear projection layer (NLL): `a x + b MLP(LN(x))`, the two scalars learned, or 1 where residuals are plain; its own after every loop."""

    def __init__(self, channels: int, hidden: int, residual: str, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, hidden)
        self.join = Residual(projection_form(residual), channels, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.join(x, self.mlp(self.norm(x)))
        return out


def projection_form(residual: str) -> str:
    """How a projection joins what comes in and what it makes of it, in a block of a residual form."""
    return residual if residual == "plain" else "coefficients"


class MB3DModule(nn.Module):
    """(B, N, C) or (B, C, H, W) -> (B, N, C); what is `Kept` stays so, and becomes so where the patches are scored or compared."""

    def __init__(self, spec: "MB3D", state: Tokens) -> None:
        super().__init__()
        channels = state.channels
        self.norm1 = nn.LayerNorm(channels, eps=spec.eps)
        cuts = [Cut(state.grid, groups, order, spec.inverse, spec.seed, spec.bias) for groups, order in spec.cuts]
        places = state.grid[0] * state.grid[1] if spec.bias else None
        eps = spec.eps if spec.qk_norm else None
        self.token_mixer = Attention(
            channels,
            spec.heads,
            spec.key_dim,
            spec.value_dim,
            places,
            cuts,
            state.prefix,
            eps,
            state.fused,
            spec.qkv_bias,
        )
        self.ls1 = Residual(spec.residual, channels, spec.layer_scale)
        more = spec.reused_width(state)
        self.joint = bool(state.earlier and state.earlier.joint)
        self.norm2 = nn.LayerNorm(channels + more * self.joint, eps=spec.eps)
        self.features = FeatureReuse(state.earlier, state.prefix, spec.eps) if state.earlier and more else None
        self.mlp = Mlp(channels, hidden_width(channels, spec.ratio), spec.mlp, channels + more)
        self.ls2 = Residual(spec.residual, channels, spec.layer_scale)
        hidden = hidden_width(channels, spec.nll) if spec.nll else 0
        count = spec.loops if spec.nll else 0
        self.nll = nn.ModuleList(Projection(channels, hidden, spec.residual, spec.eps) for _ in range(count))
        self.loops = spec.loops

    def forward(
        self,
        x: Tensor | Kept,
        loop: int | None = None,
        scored: bool = False,
        keyed: bool = False,
        layer: Layer | None = None,
    ) -> Tensor | Kept:
        """All loops, or the one numbered `loop`; the last of them scores the patches where `scored`, and gives their keys where `keyed`.

        `layer` says what it reuses of a cascade's stage before, and what it tells the next.
        """
        loops = range(self.loops) if loop is None else (loop,)
        for number in loops:
            last = number == loops[-1]
            x = self._once(x, number, scored and last, keyed and last, layer)
        return x

    def _once(self, given: Tensor | Kept, loop: int, scored: bool, keyed: bool, layer: Layer | None) -> Tensor | Kept:
        x = given.x if isinstance(given, Kept) else given
        x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        kept = given if isinstance(given, Kept) else None
        relations = None if layer is None else Relations(layer.added, layer.told)
        mixed, score, keys = self.token_mixer(self.norm1(x), loop, kept, scored, keyed, relations)
        x = self.ls1(x, mixed)
        x = self.ls2(x, self.mlp(self.norm2(x) if self.features is None else self._with_features(x, layer)))
        if self.nll:
            x = self.nll[loop](x)
        if kept is not None:
            return replace(kept, x=x, score=score, keys=keys, chosen=None)
        return Kept(x, score=score, keys=keys) if scored or keyed else x

    def _with_features(self, x: Tensor, layer: Layer | None) -> Tensor:
        """The MLP's input (B, N, C + width): what is reused stands behind the tokens' own channels."""
        assert self.features is not None and layer is not None
        assert layer.features is not None and layer.spread is not None
        more = self.features(layer.features, layer.spread)
        if self.joint:
            out: Tensor = self.norm2(torch.cat([x, more], -1))
            return out
        return torch.cat([self.norm2(x), more], -1)


@dataclass(frozen=True)
class MB3D(BlockSpec):
    """Pre-LN attention and pre-LN MLP, applied `loops` times with the same weights; a map is laid out as tokens first.

    `recursion` internal: a block's loops come in a row. external: neighbouring blocks with as many loops run one after the
    other, all of them once in each loop (arXiv 2111.05297, section 3.1).

    Widths `key_dim` and `value_dim` are per head. `residual` says how branches join, see `Residual`; `layer_scale` is where
    its scales start. `bias`: a learned bias for each head and offset on the grid. `nll`: hidden width over width of the
    projection after each loop, 0 for none. `groups` and `orders`: into how many groups each loop cuts the tokens, and in
    which order; empty for one group. `inverse`: whether the branch puts the tokens back. `seed` draws permuted orders.
    `qk_norm`: LN of each head's queries and keys. `mlp`: what stands between the MLP's layers, one of `MLPS`; `ratio` is that of
    its hidden neurons, of which gated ones take two outputs of the first layer each. `qkv_bias`: whether queries, keys and values have
    biases. `reuse`: what of a cascade's stage before it reuses, some of `REUSES`; a `Reuse` block before it says what there is.
    """

    kind: ClassVar[str] = "mb3d"
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128
    ratio: float = 4
    layer_scale: float = 1e-5
    residual: str = "layer_scale"
    bias: bool = True
    loops: int = 1
    nll: float = 0
    groups: tuple[int, ...] = ()
    orders: tuple[str, ...] = ()
    inverse: bool = True
    seed: int = 0
    recursion: str = "internal"
    eps: float = 1e-5  # of all norms
    qk_norm: bool = False
    mlp: str = "gelu"
    qkv_bias: bool = True
    reuse: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse empty heads, and groups that say nothing or the same as others would: equal networks have equal specs."""
        check_form(self.residual)
        if self.reuse != tuple(one for one in REUSES if one in self.reuse):
            raise ValueError(f"reuse must be some of {', '.join(REUSES)}, in this order, got {self.reuse}")
        if self.reuse and (self.bias or self.loops > 1 or self.groups):
            raise ValueError("a block that reuses has neither a position bias nor loops nor groups")
        if self.mlp not in MLPS:
            raise ValueError(f"mlp must be one of {', '.join(MLPS)}, got {self.mlp!r}")
        if min(self.heads, self.key_dim, self.value_dim, self.loops) < 1 or self.nll < 0 or self.seed < 0:
            raise ValueError(f"heads, their widths and loops must be at least 1, nll and seed at least 0, got {self}")
        if len(self.groups) not in (0, self.loops) or len(self.orders) != len(self.groups):
            raise ValueError(
                f"{self.loops} loops need as many groups and orders, or none, got {self.groups} and {self.orders}"
            )
        if any(groups < 1 for groups in self.groups) or any(order not in ORDERS for order in self.orders):
            raise ValueError(
                f"groups must be at least 1 and orders among {', '.join(ORDERS)}, got {self.groups} and {self.orders}"
            )
        moved = [groups > 1 for groups, order in self.cuts if order != "contiguous"]
        if not all(moved) or (self.groups and max(self.groups) == 1):
            raise ValueError("one group has no order, and groups that are all 1 are written as none")
        if (not any(moved) and not self.inverse) or ("permuted" not in self.orders and self.seed):
            raise ValueError("inverse and seed say nothing without an order that moves tokens; leave them out")
        if self.recursion not in RECURSIONS or (self.recursion == "external" and self.loops == 1):
            raise ValueError(
                f"recursion must be one of {', '.join(RECURSIONS)}, external with 2 loops or more, got {self.recursion!r}"
            )

    @property
    def label(self) -> str:
        loops = f" {self.loops} {'external ' if self.passes > 1 else ''}loops" if self.loops > 1 else ""
        cuts = (
            " in " + ",".join(f"{groups} {order}" if groups > 1 else "1" for groups, order in self.cuts)
            if self.groups
            else ""
        )
        heads = f" {self.heads}h{self.key_dim}" if self.residual == "plain" else ""  # a ViT's differ by block
        return f"3D×{self.ratio:g}{heads}{loops}{' NLL' if self.nll else ''}{cuts}"

    @property
    def passes(self) -> int:
        return self.loops if self.recursion == "external" else 1

    @property
    def cuts(self) -> tuple[tuple[int, str], ...]:
        """Groups and order of each loop."""
        return tuple(zip(self.groups, self.orders, strict=True)) or ((1, "contiguous"),) * self.loops

    def _input(self, state: State) -> tuple[Tokens, int]:
        if not isinstance(state, Map | Tokens):
            raise ValueError(f"MB3D takes tokens or a map, got {state}")
        source = tokens_of(state)
        wrong = [groups for groups, _ in self.cuts if source.count % groups]
        if wrong:
            raise ValueError(f"{source.count} tokens cannot be cut into {wrong[0]} equal groups")
        if self.groups and (source.pruned or source.prefix):
            raise ValueError("groups need every token of the grid and no other, but some were dropped or added")
        if self.bias and source.prefix:
            raise ValueError("a bias for each offset on the grid needs tokens that all lie on it; bias must be false")
        if self.bias and (source.fused or source.sized):
            raise ValueError("fused and merged tokens have no place on the grid; bias must be false behind them")
        if self.reuse:
            self._check_reuse(source)
        return source, hidden_width(state.channels, self.ratio)

    def _check_reuse(self, source: Tokens) -> None:
        earlier = source.earlier
        there = earlier is not None and {"features": earlier.width > 0, "relations": earlier.relations}
        lacking = [one for one in self.reuse if not there or not there[one]]
        if lacking:
            raise ValueError(f"there are no {lacking[0]} of an earlier stage; put a reuse block that has them before")
        if source.pruned:
            raise ValueError("a block that reuses needs every token of the grid, but some were dropped")

    def reused_width(self, source: Tokens) -> int:
        """Channels of an earlier stage's features at the MLP's input."""
        return source.earlier.width if source.earlier and "features" in self.reuse else 0

    def output(self, state: State) -> Tokens:
        return replace(self._input(state)[0], scored_by=Scorer(self.heads, self.value_dim, self.key_dim))

    def macs(self, state: State) -> int:
        source, hidden = self._input(state)
        n, c = source.count, source.channels
        projections = n * c * self.heads * (2 * self.key_dim + 2 * self.value_dim)
        matmuls = sum(n * n // groups for groups, _ in self.cuts) * self.heads * (self.key_dim + self.value_dim)
        nll = 2 * n * c * hidden_width(c, self.nll) if self.nll else 0
        ffn = (1 + gates(self.mlp)) * n * c * hidden + self._feature_macs(source, hidden)
        return self.loops * (projections + ffn + nll) + matmuls

    def _feature_macs(self, source: Tokens, hidden: int) -> int:
        """What features make of an earlier stage's, and what the MLP's input is wider for it."""
        width, earlier = self.reused_width(source), source.earlier
        if not width or earlier is None:
            return 0
        making = earlier.patches * earlier.hidden * (earlier.channels + width)
        return making + source.count * width * gates(self.mlp) * hidden

    def params(self, state: State) -> int:
        source, hidden = self._input(state)
        places, c = source.grid[0] * source.grid[1], source.channels
        qkv = (c + self.qkv_bias) * self.heads * (2 * self.key_dim + self.value_dim)
        attention = qkv + self.heads * self.value_dim * c + c + (self.heads * places if self.bias else 0)
        attention += 4 * self.key_dim if self.qk_norm else 0
        mlp = (1 + gates(self.mlp)) * c * hidden + gates(self.mlp) * hidden + c
        wide = hidden_width(c, self.nll) if self.nll else 0
        nll = 2 * c * wide + wide + 3 * c + residual_params(projection_form(self.residual), c) if self.nll else 0
        mlp += self._feature_params(source, hidden)
        return attention + mlp + 4 * c + 2 * residual_params(self.residual, c) + self.loops * nll

    def _feature_params(self, source: Tokens, hidden: int) -> int:
        width, earlier = self.reused_width(source), source.earlier
        if not width or earlier is None:
            return 0
        making = 2 * earlier.channels + (earlier.channels + 1) * earlier.hidden + (earlier.hidden + 1) * width
        return making + width * gates(self.mlp) * hidden + 2 * width * earlier.joint

    def rows(self, state: State) -> tuple[Row, ...]:
        source, hidden = self._input(state)
        n, channels = source.count, ("c", source.channels)
        kept: tuple[tuple[str, int], ...] = (("kept", 1),) if source.pruned else ()
        widths: tuple[tuple[str, int], ...] = (("heads", self.heads), ("qk", self.key_dim), ("v", self.value_dim))
        widths += (("qk_norm", 1),) if self.qk_norm else ()
        widths += () if self.qkv_bias else (("bare", 1),)
        earlier = source.earlier
        widths += (("relations", earlier.tokens),) if earlier and "relations" in self.reuse else ()
        widths += (("told", 1),) if source.asked else ()
        bias = () if self.bias else (("unbiased", 1),)
        if source.pruned and self.bias:  # whose rows are gathered from those of the whole grid
            bias = (("places", source.grid[0] * source.grid[1]),)
        sized: tuple[tuple[str, int], ...] = (("sized", 1),) if source.sized else ()
        kept += residual_dims(self.residual) if self.residual == "plain" else ()
        form = list(MLPS).index(self.mlp)
        between: tuple[tuple[str, int], ...] = (("mlp", form),) if form else ()
        if earlier and "features" in self.reuse:
            between += (("cin", earlier.channels), ("patches", earlier.patches), ("between", earlier.hidden))
            between += (("features", earlier.width), ("joint", int(earlier.joint)))
        rows = [Row("flatten", n, (channels,))] if isinstance(state, Map) else []
        for groups, order in self.cuts:
            cut = (("groups", groups),) if groups > 1 else ()
            rows.append(Row("mb3d.attention", n, (channels, *widths, *cut, *bias, *kept, *sized)))
            rows.append(Row("mb3d.ffn", n, (channels, ("hidden", hidden), *between, *kept)))
            if order != "contiguous":
                rows.append(
                    Row("mb3d.move", n, (channels, ("v", self.heads * self.value_dim), ("ways", 1 + self.inverse)))
                )
            if self.residual == "coefficients":  # one more multiplication for each branch
                rows.append(Row("mb3d.coefficients", n, (channels, *kept)))
            if self.nll:
                rows.append(Row("mb3d.nll", n, (channels, ("hidden", hidden_width(source.channels, self.nll)), *kept)))
        return tuple(rows)

    def row_macs(self, state: State) -> tuple[int, ...]:
        source, hidden = self._input(state)
        n, c = source.count, source.channels
        ffn = (1 + gates(self.mlp)) * n * c * hidden + self._feature_macs(source, hidden)
        each = {"mb3d.ffn": ffn, "mb3d.nll": 2 * n * c * hidden_width(c, self.nll) if self.nll else 0}
        projections = n * c * self.heads * (2 * self.key_dim + 2 * self.value_dim)
        found, loops = [], iter(self.cuts)
        for row in self.rows(state):
            if row.op == "mb3d.attention":
                matmuls = n * n // next(loops)[0] * self.heads * (self.key_dim + self.value_dim)
                found.append(projections + matmuls)
            else:
                found.append(each.get(row.op, 0))
        return tuple(found)

    def narrower(self, state: State, share: float) -> Mapping[str, BlockSpec]:
        source, hidden = self._input(state)
        c = source.channels
        wide = hidden_width(c, self.nll) if self.nll else 1
        found: dict[str, BlockSpec] = {}
        for what, field, size in (
            ("FFN width", "ratio", hidden),
            ("heads", "heads", self.heads),
            ("q/k width", "key_dim", self.key_dim),
            ("v width", "value_dim", self.value_dim),
            ("NLL width", "nll", wide),
        ):
            less = fewer(size, share)
            value: dict[str, Any] = {field: less / c if field in ("ratio", "nll") else less}
            if less < size:
                found[f"{what} {size} → {less}"] = replace(self, **value)
        return found

    def grid_params(self, state: State) -> Mapping[str, str]:
        grid = self._input(state)[0].grid
        return {"token_mixer.attention_biases": f"{grid[0]}x{grid[1]}"} if self.bias else {}

    def regrid(self, name: str, tensor: Tensor, state: State, source: Grid) -> Tensor:
        return offsets(tensor, source, self._input(state)[0].grid)

    def split(self, name: str, tensor: Tensor, state: State) -> Mapping[str, Tensor]:
        if name.startswith("token_mixer.qkv."):
            heads = torch.unflatten(tensor, 0, (self.heads, -1))
            pieces = torch.split_with_sizes(heads, [self.key_dim, self.key_dim, self.value_dim], 1)
            return dict(zip("qkv", pieces, strict=True))
        if name.startswith("mlp.fc1.") and gates(self.mlp) > 1:
            return {name: torch.unflatten(tensor, 0, (gates(self.mlp), -1))}
        return {name: torch.unflatten(tensor, 1, (self.heads, -1)) if name == "token_mixer.proj.weight" else tensor}

    def join(self, name: str, parts: Mapping[str, Tensor], state: State) -> Tensor:
        if name.startswith("token_mixer.qkv."):
            return torch.cat([parts[piece] for piece in "qkv"], 1).flatten(0, 1)
        if name.startswith("mlp.fc1.") and gates(self.mlp) > 1:
            return parts[name].flatten(0, 1)
        return parts[name].flatten(1) if name == "token_mixer.proj.weight" else parts[name]

    def shallower(self, loops: int) -> "MB3D":
        kept = min(self.loops, loops)
        cut = max(self.groups[:kept], default=1) > 1
        groups, orders = (self.groups[:kept], self.orders[:kept]) if cut else ((), ())
        moves = any(order != "contiguous" for order in orders)
        return replace(
            self,
            loops=kept,
            groups=groups,
            orders=orders,
            inverse=self.inverse or not moves,
            seed=self.seed if "permuted" in orders else 0,
            recursion=self.recursion if kept > 1 else "internal",
        )

    def build(self, state: State) -> nn.Module:
        return MB3DModule(self, self._input(state)[0])
