"""Narrower embeddings: exact where the stream has no more directions, and better than cutting channels where it has."""

import pytest
import torch

from compress.narrowing import narrowings
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position, Stem

WIDTH, RANK = 32, 12


def network(
    residual: str = "plain", pool: str = "token", distilled: bool = True, rank: int | None = RANK, stem: bool = False
) -> Network:
    """A network whose stream, less the mean over channels, has `rank` directions."""
    block = MB3D(2, 8, 8, 2.0, residual=residual, bias=False, eps=1e-6, layer_scale=0.7)
    tokens = (ClassToken(2), Position())
    before = (Stem(16, 3), Patch(WIDTH, 1)) if stem else (Patch(WIDTH, 8),)
    arch = Arch(32, 3, (*before, *tokens, block, block, Head(5, pool=pool, distilled=distilled)))
    torch.manual_seed(0)
    made = arch.build().eval()
    basis = torch.linalg.qr(torch.randn(WIDTH, rank or WIDTH))[0]
    onto = basis @ basis.T
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
        patch, token, position, *blocks, _ = made.blocks[len(before) - 1 :]
        patch.proj.weight.copy_(torch.tensordot(onto, patch.proj.weight, 1))
        patch.proj.bias.copy_(onto @ patch.proj.bias)
        token.tokens.copy_(token.tokens @ onto)
        position.table.copy_(position.table @ onto)
        for one in blocks:
            for layer, scale in ((one.token_mixer.proj, one.ls1), (one.mlp.fc2, one.ls2)):
                gamma = scale.gamma if residual == "layer_scale" else torch.ones(WIDTH)
                layer.weight.copy_(onto @ (gamma[:, None] * layer.weight) / gamma[:, None])
                layer.bias.copy_(onto @ (gamma * layer.bias) / gamma)
    return made


IMAGES = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def run(made: Network, width: int, images: torch.Tensor) -> tuple[torch.Tensor, Network]:
    arch, weights = narrowings(made, IMAGES, [width])[width](made.arch, made.state_dict())
    narrow = arch.build().eval()
    narrow.load_state_dict(weights)
    with torch.no_grad():
        return narrow(images), narrow


@pytest.mark.parametrize("residual", ["plain", "layer_scale", "coefficients"])
@pytest.mark.parametrize(("pool", "distilled"), [("token", True), ("token", False), ("mean", False)])
def test_directions_that_are_not_there_cost_nothing(residual: str, pool: str, distilled: bool) -> None:
    made = network(residual, pool, distilled)
    unseen = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = made(unseen)
    for width in (24, 16):  # one channel more than directions is enough
        found, narrow = run(made, width, unseen)
        assert torch.allclose(found, wanted, atol=3e-4) and wanted.std() > 0.1
        assert narrow.blocks[0].proj.weight.shape[0] == width and narrow.blocks[3].mlp.fc1.weight.shape == (64, width)


def test_a_stem_stays_as_it_is() -> None:
    block = MB3D(2, 8, 8, 2.0, residual="plain", bias=False)
    made = Arch(32, 3, (Stem(8, 3), Patch(16, 1), Position(), block, Head(5))).build().eval()
    _, narrow = run(made, 8, IMAGES[0])
    assert torch.equal(narrow.blocks[0].state_dict()["conv1.weight"], made.blocks[0].state_dict()["conv1.weight"])


def test_convolutions_before_the_patches_stay_as_they_are() -> None:
    made = network(stem=True)
    unseen = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = made(unseen)
    found, narrow = run(made, 16, unseen)
    assert torch.allclose(found, wanted, atol=3e-4) and wanted.std() > 0.1
    assert narrow.blocks[0].conv3.weight.shape[0] == 16 == narrow.blocks[1].proj.weight.shape[0]


def test_a_full_stream_loses_less_than_by_cutting_channels() -> None:
    made = network(rank=None)
    unseen = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = made(unseen)
    losses = []
    for width in (24, 16, 8):
        found, narrow = run(made, width, unseen)
        losses.append(float((found - wanted).square().mean()))
        cut = narrow.arch.build().eval()
        whole = made.state_dict()
        cut.load_state_dict(
            {name: whole[name][tuple(slice(n) for n in one.shape)] for name, one in cut.state_dict().items()}
        )
        with torch.no_grad():
            assert losses[-1] < 0.5 * float((cut(unseen) - wanted).square().mean())
    assert losses == sorted(losses)
