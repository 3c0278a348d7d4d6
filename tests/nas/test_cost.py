import pytest
import torch
from typer.testing import CliRunner

from nas.cli.main import app
from nas.cost import macs, macs_fvcore, macs_thop, params
from nas.describe import describe
from nas.latency import MissingLatency
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import (
    BLOCKS,
    MB3D,
    MB4D,
    AttentionEmbed,
    AttentionPool,
    BlockSpec,
    ClassToken,
    Conv,
    Embed,
    Head,
    InvertedResidual,
    LiteBottleneck,
    MapAttention,
    MobileFormer,
    MobileFormerEmbed,
    MobileFormerPool,
    MobileViT,
    Norm,
    Normalise,
    Patch,
    Position,
    SideTokens,
    Stem,
    TokenPrune,
    TokensToToken,
)
from search_spaces.cascade import Cascade, linked
from tests.nas.test_kept_rows import table
from tests.nas.toy import toy_space
from tests.search_spaces.test_token_prune import vit

CONTEXTS: dict[str, tuple[BlockSpec, ...]] = {  # a network in which the block does most of the work
    "stem": (Stem(48), Head(4)),
    "embed": (Stem(8), Embed(96), Head(4)),
    "mb4d": (Stem(16), *[MB4D(3)] * 6, Head(4)),
    "mb3d": (Stem(16), *[MB3D(heads=3, key_dim=8, value_dim=12, ratio=2)] * 6, Head(4)),
    "head": (Stem(8), Head(4000, distilled=True)),
    "position": (Stem(48), Position(), Head(4)),
    "patch": (Patch(48, 8), Head(4)),
    "class_token": (Patch(48, 8), ClassToken(), MB3D(bias=False), Head(4, pool="token")),
    "norm": (Patch(48, 8), Position(), Norm(), MB3D(3, 8, 8, bias=False, qk_norm=True), Head(4)),
    "map_attention": (Stem(16), *[MapAttention(3, 8, 12, 2)] * 4, Head(4)),
    "attention_embed": (Stem(16), AttentionEmbed(96, 3, 8, 12), Head(4)),
    "tokens_to_token": (TokensToToken(48, between=16), Head(4)),
    "attention_pool": (Patch(48, 8), Position(), AttentionPool(4), Head(4, norm="none")),
    "lite_bottleneck": (Stem(16), *[LiteBottleneck(16, 4, groups=2)] * 4, Head(4)),
    "side_tokens": (Stem(16), SideTokens(20, 16), *[MobileFormer(16, 1)] * 4, Head(4)),
    "mobile_former": (Stem(16), SideTokens(3, 16), *[MobileFormer(16, 3, groups=2)] * 4, Head(4)),
    "mobile_former_embed": (Stem(16), SideTokens(3, 16), MobileFormerEmbed(96), Head(4)),
    "mobile_former_pool": (Stem(8), SideTokens(20, 64), MobileFormerPool(400), Head(4, norm="none")),
    "conv": (Conv(16, stride=2), Conv(48, 5), Conv(96, 1), Head(4, norm="none")),
    "inverted_residual": (Conv(16, stride=2), InvertedResidual(24, 2), *[InvertedResidual(24, 1, 3)] * 2, Head(4)),
    "mobilevit": (
        Conv(16, stride=2),
        Conv(24, stride=2),
        MobileViT(48, 3),
        Conv(24, stride=2),
        MobileViT(32, 2),
        Head(4),
    ),
    "normalise": (Normalise((0.5,), (0.25,)), Stem(48), Head(4)),
    "token_prune": (
        Stem(16),
        MB3D(3, 8, 12),
        TokenPrune(40),
        *[MB3D(3, 8, 12)] * 3,
        TokenPrune(9),
        MB3D(3, 8, 12),
        Head(4),
    ),
}


def cascade() -> Cascade:
    """Its stages reuse much of the ones before."""
    block = MB3D(6, 4, 4, 2, bias=False)
    return linked(
        [Arch(48, 3, (Patch(12, size), ClassToken(), block, block, Head(4, pool="token"))) for size in (16, 8)]
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_three_counts_agree_on_every_block_kind(kind: str) -> None:
    arch = cascade() if kind == "reuse" else Arch(48, 3, CONTEXTS[kind])
    assert any(spec.kind == kind for spec in arch.blocks)
    assert macs_fvcore(arch) == pytest.approx(macs(arch), rel=0.01)
    assert macs_thop(arch) == pytest.approx(macs(arch), rel=0.01)
    assert params(arch) == sum(weight.numel() for weight in arch.build().parameters())


WIDE = MB3D(1, 64, 2, 0.1, bias=False)  # so that products of keys are a share of the work that would be missed
REDUCED: dict[str, tuple[BlockSpec, ...]] = {
    rest: (WIDE, TokenPrune(20, rest=rest), WIDE, TokenPrune(15, rest=rest), WIDE) for rest in ("fused", "merged")
}

VARIANTS: dict[str, tuple[BlockSpec, ...]] = {
    "stem of three": (Stem(48, convs=3), Head(4, mean_first=True)),
    "stem with gelu, head with BN": (Stem(48, act="gelu"), Head(4, norm="batch")),
    "transformer on odd sides": (Conv(16, 7, 2), *[Conv(24, stride=2)] * 3, MobileViT(48, 3), Head(4, norm="none")),
    "strided attention, odd sides": (
        Stem(16),
        Embed(24),
        Embed(32),
        *[MapAttention(3, 8, 12, 2, stride=2)] * 4,
        Head(4),
    ),
    "fused": (Patch(48, 8), *REDUCED["fused"], Head(4)),
    "merged": (Patch(48, 8), ClassToken(), *REDUCED["merged"], Head(4, pool="token")),
    "merged, pooled": (Patch(48, 8), *REDUCED["merged"], AttentionPool(4), Head(4, norm="none")),
    "fused, pooled": (Patch(48, 8), ClassToken(), *REDUCED["fused"], AttentionPool(4), Head(4, norm="none")),
    "two streams without bridges": (
        Stem(16, convs=1, act="relu6", bias=False),
        LiteBottleneck(16, stride=2),
        SideTokens(3, 16),
        MobileFormer(24, to_former=False),
        MobileFormerEmbed(32, to_mobile=False),
        MobileFormerPool(64, to_former=False),
        Head(4, norm="none"),
    ),
    "gated MLP": (Patch(48, 8), *[MB3D(3, 8, 8, 2, mlp="swiglu")] * 3, Head(4)),
    "CLIP's MLP, features": (Patch(48, 8), *[MB3D(3, 8, 8, 2, mlp="quick_gelu")] * 3, Head(0)),
    "mb4d depthwise": (Stem(16), *[MB4D(3, mixer="depthwise")] * 4, Head(4)),
    "embeds of tokens": (Stem(16), MB3D(1, 4, 4, 1), Embed(48, "depthwise"), Embed(96, "separable"), Head(4)),
    "loops and projections": (Stem(16), *[MB3D(3, 8, 12, 2, loops=3, nll=2, residual="coefficients")] * 2, Head(4)),
    "external loops": (
        Stem(16),
        *[MB3D(3, 8, 12, 2, loops=2, recursion="external")] * 2,
        TokenPrune(9),
        MB3D(),
        Head(4),
    ),
    "groups": (
        Stem(16),
        MB3D(3, 8, 12, 1, loops=2, groups=(4, 9), orders=("strided", "permuted")),
        MB3D(3, 8, 12, 1, groups=(16,), orders=("contiguous",), bias=False),
        Head(4),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_three_counts_agree_on_every_form_of_a_block(name: str) -> None:
    arch = Arch(48, 3, VARIANTS[name])
    assert macs_fvcore(arch) == pytest.approx(macs(arch), rel=0.01)
    assert macs_thop(arch) == pytest.approx(macs(arch), rel=0.01)
    assert params(arch) == sum(weight.numel() for weight in arch.build().parameters())


@pytest.mark.parametrize(
    ("name", "count", "weights"),
    [("efficientformer_l1", 1291284736, 12289928), ("efficientformerv2_s0", 395892544, 3600256)],
)
def test_three_counts_agree_on_published_networks(name: str, count: int, weights: int) -> None:
    arch = zoo.arch(name)
    assert macs(arch) == count and params(arch) == weights
    assert macs_fvcore(arch) == pytest.approx(macs(arch), rel=0.01)
    assert macs_thop(arch) == pytest.approx(macs(arch), rel=0.01)


def test_a_network_with_thresholds_is_counted_at_its_mean_numbers() -> None:
    """Random weights would keep others."""
    arch = zoo.arch("asvit_deit_tiny")
    found = describe(arch)
    assert found["macs"] == macs(arch.keeping(adaptive=False)) < 0.7 * macs(zoo.arch("deit_tiny_patch16_224"))
    assert found["macs_fvcore"] == pytest.approx(found["macs"], rel=0.01)
    assert found["macs_thop"] == pytest.approx(found["macs"], rel=0.01)
    assert found["params"] == params(zoo.arch("deit_tiny_patch16_224")) + 3


def test_its_price_is_at_its_mean_numbers_and_has_the_rows_of_thresholds() -> None:
    """Told by a table in which every row has a time of its own."""
    static, adaptive = vit((40, 20), False), vit((40, 20), True)
    known = table(static, adaptive)
    found = [describe(arch, known) for arch in (static, adaptive)]
    differing = [
        one["kind"] for one, other in zip(*(each["blocks"] for each in found), strict=True) if one["ms"] != other["ms"]
    ]
    assert differing == ["token_prune"] * 2
    assert found[1]["predicted_ms"] == known.predict(adaptive).ms > 0
    with pytest.raises(MissingLatency, match="adaptive=1"):
        describe(adaptive, table(static))


class Odd(torch.nn.Module):
    """An operator that fvcore has no rule for, and a module that thop has none for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.unused = torch.nn.Bilinear(46, 46, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumprod(self.conv(x), 1)


def test_a_module_that_a_counter_has_no_rule_for_is_not_silently_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = Arch(48, 3, CONTEXTS["stem"])
    monkeypatch.setattr(Arch, "build", lambda self: Odd())
    with pytest.raises(AssertionError, match="cumprod"):
        macs_fvcore(arch)
    with pytest.raises(AssertionError, match="Bilinear"):
        macs_thop(arch)


def test_counting_leaves_nothing_on_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = Arch(48, 3, CONTEXTS["mb3d"])
    network = arch.build()
    names = [name for name, _ in network.named_buffers()]
    monkeypatch.setattr(Arch, "build", lambda self: network)
    macs_thop(arch)
    assert [name for name, _ in network.named_buffers()] == names


def test_the_command_prints_a_row_with_a_label_for_each_block() -> None:
    arch = zoo.arch("efficientformerv2_s0")
    found = CliRunner().invoke(app, ["describe", "efficientformerv2_s0"])
    rows = [[cell.strip() for cell in line.split("│")] for line in found.stdout.splitlines() if "│" in line]
    assert [row[1:4] for row in rows] == [[str(i), spec.kind, spec.label] for i, spec in enumerate(arch.blocks)]


def test_a_description_adds_up() -> None:
    arch = toy_space().largest
    found = describe(arch)
    assert found["predicted_ms"] is None and all(block["ms"] is None for block in found["blocks"])
    assert found["macs"] == sum(block["macs"] for block in found["blocks"]) == macs(arch)
    assert found["params"] == sum(block["params"] for block in found["blocks"]) == params(arch)
    assert [block["kind"] for block in found["blocks"]] == [spec.kind for spec in arch.blocks]
    assert [block["index"] for block in found["blocks"]] == list(range(len(arch.blocks)))
    assert [block["label"] for block in found["blocks"]] == [spec.label for spec in arch.blocks]
    assert found["blocks"][0]["output"] == [16, 8, 8] and found["blocks"][-1]["output"] == [4]
