"""Hugging Face's ViT as an Arch; needs the extra `hf`."""

from typing import Any

import pytest
import torch

import compress
from search_spaces.errors import InputError
from tests.compress.test_from_module import same, shuffled
from tests.compress.test_prune import check_pruned

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "num_labels": 7,
}


class Logits(torch.nn.Module):
    """The logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(images).logits
        return out


@pytest.mark.parametrize(
    "form", [{}, {"hidden_act": "quick_gelu"}, {"qkv_bias": False}, {"num_channels": 1}, {"layer_norm_eps": 1e-3}]
)
def test_the_logits_are_the_same(form: dict[str, Any]) -> None:
    config = transformers.ViTConfig(**SMALL | form)
    model = shuffled(transformers.ViTForImageClassification(config))
    arch, weights = compress.from_module(model)
    assert same(Logits(model), arch, weights) < 1e-5


def test_layers_classifier_and_sizes_may_be_given_otherwise() -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL | {"image_size": [32, 32]}))
    model.vit.layers = model.vit.layers[:1]
    model.classifier = torch.nn.Linear(24, 5)
    arch, weights = compress.from_module(shuffled(model))
    assert arch.classes == 5 and sum(spec.kind == "mb3d" for spec in arch.blocks) == 1
    assert same(Logits(model), arch, weights) < 1e-5


def test_it_is_pruned() -> None:
    check_pruned(shuffled(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL))))


def test_what_no_arch_describes_is_refused_by_name() -> None:
    config = transformers.ViTConfig(**SMALL | {"hidden_act": "relu"})
    with pytest.raises(InputError, match="an MLP with relu"):
        compress.from_module(transformers.ViTForImageClassification(config))
    with pytest.raises(InputError, match=r"images of \[32, 64\] pixels; described are square"):
        compress.from_module(
            transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL | {"image_size": [32, 64]}))
        )
    with pytest.raises(InputError, match="ViTModel is none"):
        compress.from_module(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
