"""ViTs that were trained apart, as one cascade."""

import pytest
import timm
import torch
from torch import Tensor, nn

import compress
from search_spaces import Cascade, InputError, zoo
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.reuse import ReuseModule

SHAPES = [(16, 24, 2, 2), (12, 36, 3, 3), (8, 24, 2, 1)]  # patch, width, depth, heads


def vit(patch: int, width: int, depth: int, heads: int, **options: object) -> nn.Module:
    torch.manual_seed(patch)
    sizes = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": 7}
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(**{"img_size": 48, **sizes, **options})
    for parameter in model.parameters():  # fresh ones have heads of zeros
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def alone(models: list[nn.Module], images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model(images) for model in models]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("relations", [False, True])
@pytest.mark.parametrize("exits", [2, 3])
def test_exits_at_first_give_what_the_networks_gave(features: bool, relations: bool, exits: int) -> None:
    models, images = [vit(*shape) for shape in SHAPES[:exits]], torch.randn(3, 3, 48, 48)
    network = compress.cascade(models, feature_reuse=features, relation_reuse=relations).eval()
    assert isinstance(network.arch, Cascade)
    with torch.no_grad():
        logits = network(images)
    assert isinstance(logits, list)
    torch.testing.assert_close(logits, alone(models, images), rtol=1e-4, atol=1e-5)
    blocks = [block for block in network.blocks if isinstance(block, MB3DModule)]
    depths = [shape[2] for shape in SHAPES[:exits]]
    assert [block.features is not None for block in blocks] == [False] * depths[0] + [features] * sum(depths[1:])
    shared = [block for block in network.blocks if isinstance(block, ReuseModule)]
    assert len(shared) == (exits - 1 if features or relations else 0)
    assert all((block.relations is not None) == relations for block in shared)


def test_other_forms_of_vits() -> None:
    """Registers, pooled patches, layer scale, norms of q and k, and image sizes of their own."""
    models = [
        vit(16, 24, 1, 2, reg_tokens=2, img_size=32, dynamic_img_size=False),
        vit(16, 24, 2, 2, class_token=False, global_pool="avg", init_values=0.1),
        vit(12, 24, 2, 2, qk_norm=True),
    ]
    images = torch.randn(2, 3, 48, 48)
    small = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    network = compress.cascade(models).eval()
    with torch.no_grad():
        wanted = [models[0](small), models[1](images), models[2](images)]
        torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)


def test_it_is_on_the_cpu_whatever_the_default_device() -> None:
    models = [vit(*shape) for shape in SHAPES[:2]]
    with torch.device("meta"):
        network = compress.cascade(models)
    assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {"cpu"}
    torch.testing.assert_close(
        network.eval()(torch.ones(1, 3, 48, 48)), alone(models, torch.ones(1, 3, 48, 48)), rtol=1e-4, atol=1e-5
    )


def test_training_reaches_what_was_added() -> None:
    """At once the columns and the last convolution, which are 0; then what lies behind them; last, what reaches no exit but through the next stage.

    But the last block's features, which reach the patches alone: the class token is scored.
    """
    network = compress.cascade([vit(*shape) for shape in SHAPES])
    images, labels = torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 2, 3])
    before = [logits.detach() for logits in network(images)]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        compress.exit_loss(network(images), labels).backward()
        if step == 2:
            silent = [name for name, own in network.named_parameters() if own.grad is None or not own.grad.any()]
            last = max(place for place, block in enumerate(network.blocks) if isinstance(block, MB3DModule))
            assert all(name.startswith(f"blocks.{last}.features.") for name in silent)
        optimiser.step()
    assert all(not torch.equal(one, other) for one, other in zip(before, network(images), strict=True))


def test_the_loss_is_the_sum_over_exits() -> None:
    logits, labels = [torch.randn(4, 7) for _ in range(3)], torch.tensor([0, 1, 2, 3])
    shares = nn.functional.one_hot(labels, 7).float()
    wanted = -sum((own.log_softmax(-1) * shares).sum(-1).mean() for own in logits)
    torch.testing.assert_close(compress.exit_loss(logits, labels), wanted)
    torch.testing.assert_close(compress.exit_loss(logits, shares), wanted)
    assert compress.exit_loss(logits, labels, label_smoothing=0.5) != wanted


def test_what_makes_no_cascade_is_refused() -> None:
    coarse, middle, fine = (vit(*shape) for shape in SHAPES)
    for models, message in (
        ([coarse], "two networks or more"),
        ([fine, coarse], "from coarse to fine; their grids have 36, 9 patches"),
        ([coarse, vit(8, 24, 2, 1, num_classes=5)], r"same classes, got \[5, 7\]"),
        ([coarse, nn.Linear(2, 2)], "network 2: Linear is no network of"),
        ([coarse, vit(7, 24, 2, 1)], "network 2: this VisionTransformer has a form that no Arch describes"),
        ([compress.cascade([coarse, middle]), fine], "a cascade is several networks"),
        ([coarse, vit(8, 24, 2, 1, num_classes=0)], "network 2 is an encoder, and every exit needs a classifier"),
        ([zoo.arch("efficientformer_l1").with_classes(7).build(), fine], "network 1 is no plain ViT"),
        ([coarse, zoo.arch("asvit_deit_tiny").with_classes(7).build()], "network 2 prunes tokens"),
    ):
        with pytest.raises(InputError, match=message):
            compress.cascade(models)
