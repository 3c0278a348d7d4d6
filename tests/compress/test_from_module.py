"""Networks of timm as Archs: the same logits, or a refusal that names what is not supported."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNormAct, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import nn

import compress
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, AttentionPool, ClassToken, Head, Norm, Patch, Position
from search_spaces.errors import InputError
from tests.compress.test_slicing import network
from tests.nas.toy import toy_space

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}

FORMS: dict[str, dict[str, Any]] = {
    "vit": {},
    "deit3": {"init_values": 1e-6, "no_embed_class": True},
    "clip": {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
    "openai clip": {"pre_norm": True, "act_layer": "quick_gelu"},
    "dinov2": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "num_classes": 0},
    "dinov2 giant": {"init_values": 1e-5, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 4.0},
    "siglip": {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    "siglip encoder": {"class_token": False, "global_pool": "map", "num_classes": 0},
    "mean of patches": {"global_pool": "avg"},
    "mean after the norm": {"global_pool": "avg", "fc_norm": False},
    "token, norm after pooling": {"fc_norm": True},
    "registers alone": {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
    "no norm at the end": {"final_norm": False},
    "no positions": {"pos_embed": "none"},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "normed queries": {"qk_norm": True},
    "any image size": {"dynamic_img_size": True},
    "grey images": {"in_chans": 1},
    "another activation": {"act_layer": "silu"},
}


def shuffled(model: nn.Module) -> nn.Module:
    """With weights that all matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model.eval()


def same(model: nn.Module, arch: Arch, weights: dict[str, torch.Tensor]) -> float:
    """Largest difference of the outputs on a few images."""
    network = arch.build().eval()
    network.load_state_dict(weights)
    images = arch.example(3, seed=5)
    with torch.no_grad():
        return float((network(images) - model(images)).abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_timms_vit_gives_the_same_logits(form: str) -> None:
    model = shuffled(VisionTransformer(**SMALL | FORMS[form]))
    arch, weights = compress.from_module(model)
    assert same(model, arch, weights) < 1e-5
    assert Arch.from_json(arch.to_json()) == arch
    assert arch.classes == (FORMS[form].get("num_classes", 7) or 24)


def test_a_distilled_one_too() -> None:
    model = shuffled(VisionTransformerDistilled(**SMALL))
    arch, weights = compress.from_module(model)
    assert same(model, arch, weights) < 1e-5
    assert arch.blocks[1] == ClassToken(2) and arch.blocks[-1] == Head(7, distilled=True, pool="token", eps=1e-6)


def test_what_the_parts_are_called() -> None:
    siglip, _ = compress.from_module(VisionTransformer(**SMALL | FORMS["siglip"]))
    assert siglip.blocks[-3:] == (Norm(1e-6), AttentionPool(3, 4, 1e-6, "gelu_tanh"), Head(7, norm="none"))
    giant, _ = compress.from_module(VisionTransformer(**SMALL | FORMS["dinov2 giant"]))
    assert giant.blocks[3] == MB3D(3, 8, 8, 2, residual="layer_scale", bias=False, eps=1e-6, mlp="swiglu")
    deit3, _ = compress.from_module(VisionTransformer(**SMALL | FORMS["deit3"]))
    assert deit3.blocks[:3] == (Patch(24, 8), Position(), ClassToken())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_models_by_name_are_read(name: str) -> None:
    model = shuffled(timm.create_model(name))
    arch, weights = compress.from_module(model)
    assert same(model, arch, weights) < 1e-5
    if name == "deit_tiny_patch16_224":
        assert arch == zoo.arch(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deit3_small_patch16_224", {"Position", "ClassToken"}),
        ("vit_base_patch16_clip_224", {"ClassToken", "Norm"}),
        ("vit_base_patch16_clip_quickgelu_224", {"ClassToken", "Norm"}),
        ("vit_small_patch14_dinov2", {"ClassToken"}),
        ("vit_small_patch14_reg4_dinov2", {"ClassToken"}),
        ("vit_giant_patch14_reg4_dinov2", {"ClassToken"}),
        ("vit_base_patch16_siglip_224", {"AttentionPool", "Norm"}),
        ("vit_so400m_patch14_siglip_378", {"AttentionPool", "Norm"}),
        ("vit_base_patch16_siglip_gap_224", {"Position"}),
        ("vit_medium_patch16_gap_256", {"Position"}),
        ("vit_medium_patch16_reg4_gap_256", {"ClassToken"}),
    ],
)
def test_models_of_other_families_by_name_are_read_in_small(name: str, parts: set[str]) -> None:
    """With what timm's own entry says, but for the sizes."""
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 112}
    model = shuffled(timm.create_model(name, pretrained=False, **small))
    arch, weights = compress.from_module(model)
    assert same(model, arch, weights) < 1e-5
    assert {type(spec).__name__ for spec in arch.blocks} >= parts and arch.encoder == (model.num_classes == 0)


@pytest.mark.parametrize("head", [nn.Linear(24, 5), nn.Identity()])
def test_the_classifier_may_be_another_than_it_was_built_with(head: nn.Module) -> None:
    model = shuffled(with_part("head", lambda _: head))
    arch, weights = compress.from_module(model)
    assert arch.classes == (5 if isinstance(head, nn.Linear) else 24)
    assert same(model, arch, weights) < 1e-5


def test_parts_in_eval_mode_stay_in_it() -> None:
    model = VisionTransformer(**SMALL).train()
    model.blocks[0].eval()
    compress.from_module(model)
    assert model.training and model.blocks[1].training and not model.blocks[0].training
    assert not model.blocks[0].attn.training


def test_a_network_of_ours_is_what_it_is() -> None:
    network = toy_space().smallest.build().eval()
    arch, weights = compress.from_module(network)
    assert arch == network.arch and same(network, arch, weights) == 0.0
    for weight in weights.values():
        weight.zero_()
    assert all(weight.abs().sum() > 0 for weight in network.parameters() if weight.ndim > 1), "what is given is a copy"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("made", [network, lambda: shuffled(VisionTransformer(**SMALL))], ids=["ours", "timm"])
def test_weights_in_other_numbers_come_out_in_float32(made: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model = made().to(dtype)
    arch, weights = compress.from_module(model)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {dtype}, "the model stays as it is"
    assert same(model.float(), arch, weights) < 1e-5


class Doubled(VisionTransformer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = 2 * super().forward(x)
        return out


class Tupled(VisionTransformer):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


class Adapted(nn.Module):
    """A layer with a part of low rank beside it, as adapters are."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.whole = whole
        self.down, self.up = nn.Linear(whole.in_features, 2, bias=False), nn.Linear(2, whole.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.whole(x) + self.up(self.down(x))
        return out


def with_part(place: str, part: Callable[[Any], nn.Module]) -> nn.Module:
    """A model of which one part is another one."""
    model = VisionTransformer(**SMALL)
    owner, _, name = place.rpartition(".")
    setattr(model.get_submodule(owner), name, part(model.get_submodule(place)))
    return model


def broken() -> nn.Module:
    model = VisionTransformer(**SMALL)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: timm.create_model("resnet18"), "ResNet is none"),
        (lambda: nn.Linear(3, 3), "Linear is no network of timm, transformers or ours"),
        (lambda: VisionTransformer(**SMALL, block_fn=ResPostBlock), "blocks ResPostBlock"),
        (lambda: VisionTransformer(**SMALL, block_fn=ParallelScalingBlock), "blocks ParallelScalingBlock"),
        (lambda: VisionTransformer(**SMALL, act_layer=nn.ReLU), "an MLP with ReLU"),
        (lambda: VisionTransformer(**SMALL, norm_layer="rmsnorm"), "a norm RmsNorm"),
        (lambda: VisionTransformer(**SMALL, attn_layer="diff"), "attention DiffAttention"),
        (lambda: VisionTransformer(**SMALL, global_pool="avgmax"), "pools 'avgmax'"),
        (lambda: VisionTransformer(**SMALL, scale_attn_norm=True), "scale_attn_norm"),
        (lambda: VisionTransformer(**SMALL | {"img_size": (32, 64)}), "32 x 64"),
        (lambda: VisionTransformer(**SMALL | {"img_size": 36}), "has a form that no Arch describes: .*36"),
        (lambda: VisionTransformer(**SMALL, embed_norm_layer=nn.LayerNorm), "a norm in it"),
        (lambda: Doubled(**SMALL), "Doubled computes something else"),
        (lambda: Tupled(**SMALL), "Tupled gives a tuple, not logits"),
        (broken, "head.weight holds NaN"),
        (lambda: VisionTransformer(**SMALL, device="meta"), "not there .device meta.; load them"),
        (lambda: nn.DataParallel(VisionTransformer(**SMALL)), "give what it wraps, its .module"),
        (lambda: torch.compile(VisionTransformer(**SMALL)), "give what it wraps, its ._orig_mod"),
        (
            lambda: with_part("blocks.0.attn.qkv", Adapted),
            "blocks.0.attn.qkv, a Adapted of neither torch.nn nor timm, .*; merge or unwrap it",
        ),
        (lambda: with_part("blocks.0.mlp.fc2", lambda own: nn.Sequential(own)), "a Sequential as the second layer"),
        (lambda: with_part("patch_embed.proj", lambda own: nn.Sequential(own)), "a Sequential as its embedding"),
        (lambda: with_part("head", lambda own: nn.Sequential(own)), "a Sequential as its classifier"),
        (lambda: VisionTransformer(**SMALL, norm_layer=LayerNormAct), "a norm LayerNormAct that is no LayerNorm"),
        (lambda: VisionTransformer(**SMALL | {"depth": 0}), "no blocks"),
        (
            lambda: VisionTransformer(**SMALL | {"img_size": None, "pos_embed": "none", "no_embed_class": True}),
            "no size, .*; give it img_size",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_arch_describes_is_refused_by_name(model: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        compress.from_module(model())
