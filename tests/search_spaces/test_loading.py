"""Released weights and checkpoints: what wraps them, what they may differ in, and what is refused."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nas.runs import save_weights
from search_spaces import Arch, InputError, zoo
from search_spaces.arch import Network
from search_spaces.blocks import MB3D, ClassToken, Head, Norm, Patch, Position
from search_spaces.zoo import checkpoint
from search_spaces.zoo.efficientformer import FAMILY as EFFICIENTFORMER
from search_spaces.zoo.released import check, fitted, places
from search_spaces.zoo.vit import FAMILY
from tests.parity.fill import image, value
from tests.parity.oracle import filled, reference

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return filled(reference(TINY))


def same(one: Network, other: Network) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.arch == other.arch and all(torch.equal(own, theirs) for own, theirs in pairs)


def of_timm(network: nn.Module) -> dict[str, Tensor]:
    """A timm model filled by the formula, and its state dict."""
    found = {name: value(name, tuple(weight.shape)) for name, weight in network.state_dict().items()}
    network.load_state_dict(found)
    return found


def test_wrappers(state: dict[str, Tensor]) -> None:
    """The first that leads to tensors, in the order that timm has: the mean of the weights before them."""
    plain = zoo.load_released(TINY, state)
    other = {name: weight + 1 for name, weight in state.items()}
    ddp = {f"module.{name}": weight for name, weight in state.items()}
    wrapped: list[dict[str, Any]] = [
        {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1)},
        {"state_dict": ddp},
        {"model": other, "model_ema": state},
        {"state_dict": other, "state_dict_ema": ddp},
        {"model": {f"_orig_mod.{name}": weight for name, weight in ddp.items()}},
        {"n_averaged": torch.tensor(3), **ddp},
        {"model": state, "model_ema": {}, "ema": {"decay": 0.99}},
    ]
    for given in wrapped:
        assert same(zoo.load_released(TINY, given), plain)


def test_what_does_not_fit_is_told_with_the_first_entries(state: dict[str, Tensor]) -> None:
    wrong = {name: weight for name, weight in state.items() if name != "blocks.3.norm1.weight"}
    wrong["blocks.12.norm1.weight"] = torch.ones(192)
    wrong["norm.bias"] = torch.ones(191)
    told = (
        r"1 missing, first blocks\.3\.norm1\.weight; 1 unexpected, first blocks\.12\.norm1\.weight; "
        r"1 misshapen, first norm\.bias is \(191,\) and should be \(192,\)"
    )
    with pytest.raises(InputError, match=told):
        zoo.load_released(TINY, wrong)
    with pytest.raises(InputError, match=r"head\.bias is \(1000,\) and should be \(7,\)"):
        zoo.load_released(TINY, state | {"head.weight": torch.ones(7, 192)})
    with pytest.raises(InputError, match="not those of efficientformer_l1"):
        zoo.load_released("efficientformer_l1", state)
    with pytest.raises(InputError, match=r"score_predictor\.0\.keep_threshold"):
        zoo.load_released("asvit_deit_tiny", state)
    for nothing in ({}, {"model": {}}, {"epoch": 3}):
        with pytest.raises(InputError, match="state dict"):
            zoo.load_released(TINY, nothing)
    for broken in (torch.full((192,), torch.nan), torch.full((192,), 1e39, dtype=torch.float64)):
        with pytest.raises(InputError, match=r"norm\.bias holds NaN"):
            zoo.load_released(TINY, state | {"norm.bias": broken})
    for wrong_type in (torch.int8, torch.bool, torch.complex64):
        with pytest.raises(InputError, match=rf"norm\.bias is of type {wrong_type}"):
            zoo.load_released(TINY, state | {"norm.bias": torch.ones(192, dtype=wrong_type)})


def test_arguments_of_other_families_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="prunes no tokens"):
        zoo.load_released(TINY, state, locations=(3, 6, 9))
    with pytest.raises(InputError, match="permutes no tokens"):
        zoo.load_released(TINY, state, permutation=torch.randperm)
    with pytest.raises(InputError, match="at least one class"):
        zoo.load_released(TINY, state, classes=0)
    for locations in ((), (0, 4), (6, 3), (4, 12)):
        with pytest.raises(InputError, match="rising order"):
            zoo.load_released("asvit_deit_tiny", state, locations=locations)


def test_fine_tuned_weights_load_as_they_are() -> None:
    theirs = VisionTransformer(img_size=96, embed_dim=192, num_heads=3, num_classes=12).eval()
    network, images = zoo.load_released(TINY, of_timm(theirs)), image(96, 2)
    assert network.arch == zoo.arch(TINY).with_classes(12).at(96)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [192, 256, 384])
def test_the_size_of_the_weights_is_the_multiple_of_their_grid(side: int) -> None:
    """Bias tables tell the grid alone, and sides that are no multiple of 32 round up to it."""
    arch = zoo.arch("efficientformer_l1").at(side)
    shapes = {
        name: entry.shape(places(arch)[entry.place]) for name, entry in next(EFFICIENTFORMER.namings(arch)).items()
    }
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert zoo.load_released("efficientformer_l1", state).arch == arch


def test_thresholds_mean_the_same_at_every_size() -> None:
    """The release's are scores, whose mean is 1 / patches."""
    arch = zoo.arch("asvit_deit_tiny").at(96)
    shapes = {name: entry.shape(places(arch)[entry.place]) for name, entry in next(FAMILY.namings(arch)).items()}
    state = {name: torch.full(shape, 1 / 36) for name, shape in shapes.items()}
    network = zoo.load_released("asvit_deit_tiny", state)
    assert network.arch == arch
    assert [network.blocks[place].threshold.item() for place in arch.locations] == [1.0] * 3


def test_new_classes_and_a_new_size(state: dict[str, Tensor]) -> None:
    plain = zoo.load_released(TINY, state)
    network = zoo.load_released(TINY, state, classes=5, image_size=96)
    assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 5)
    assert not network.training
    assert torch.equal(network.blocks[3].mlp.fc1.weight, plain.blocks[3].mlp.fc1.weight)
    table, full = network.blocks[2].table, plain.blocks[2].table
    assert table.shape == (37, 192)
    assert torch.equal(table[0], full[0])
    torch.testing.assert_close(table[1:].mean(), full[1:].mean(), rtol=0, atol=0.02)
    with pytest.raises(InputError, match="cannot take images of 100 pixels"):
        zoo.load_released(TINY, state, image_size=100)
    l1 = filled(reference("efficientformer_l1"))
    assert zoo.load_released("efficientformer_l1", l1, image_size=256)(torch.zeros(1, 3, 256, 256)).shape == (1, 1000)


def test_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    plain = zoo.load_released(TINY, state)
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0, model="deit")}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert same(zoo.from_checkpoint(tmp_path / name), plain)
        assert same(zoo.from_checkpoint(tmp_path / name, TINY), plain)
    with pytest.raises(InputError, match=r"a\.pth: these weights are not those of efficientformer_l1"):
        zoo.from_checkpoint(tmp_path / "a.pth", "efficientformer_l1")
    assert zoo.from_checkpoint(tmp_path / "a.pth", classes=3).arch.classes == 3


def test_our_own_file_says_what_it_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Arch(32, 3, (Patch(8, 8), Position(), MB3D(2, 4, 4, bias=False), Head(3))).build().eval()
    save_weights(tmp_path / "weights.safetensors", network.state_dict(), network.arch)
    assert same(zoo.from_checkpoint(tmp_path / "weights.safetensors"), network)
    assert zoo.from_checkpoint(tmp_path / "weights.safetensors", classes=5, image_size=64).arch.image_size == 64
    with pytest.raises(InputError, match=r"weights\.safetensors: .*leave out name"):
        zoo.from_checkpoint(tmp_path / "weights.safetensors", TINY)
    lacking = {name: weight for name, weight in network.state_dict().items() if name != "blocks.1.table"}
    save_weights(tmp_path / "lacking.safetensors", lacking, network.arch)
    with pytest.raises(InputError, match=r"lacking\.safetensors: .*1 missing, first blocks\.1\.table"):
        zoo.from_checkpoint(tmp_path / "lacking.safetensors")


@pytest.mark.parametrize("said", ["resnet50", "3", '{"kind": "other"}'])
def test_what_others_say_of_an_architecture_is_theirs(said: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "theirs.safetensors", {"arch": said})
    assert zoo.from_checkpoint(tmp_path / "theirs.safetensors").arch == zoo.arch(TINY)


def test_an_old_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.pth"):
            checkpoint.read(tmp_path / "cut.pth")


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_damaged_and_harmful_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    marker = tmp_path / "was run"
    torch.save({"model": state, "more": Harmful(marker)}, tmp_path / "harmful.pth")
    torch.save({"model": state, "more": Harmful(marker)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "whole.pth")
    save_file(state, tmp_path / "whole.safetensors")
    for suffix in (".pth", ".safetensors"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for share in (0, 0.001, 0.5, 0.999):
            (tmp_path / f"cut{share}{suffix}").write_bytes(whole[: int(share * len(whole))])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    torch.save({"model": {"a": [1, 2]}}, tmp_path / "list.pth")
    (tmp_path / "folder.pth").mkdir()
    bad = [path for path in tmp_path.iterdir() if not path.stem.startswith("whole")]
    assert len(bad) > 10
    for path in (*bad, tmp_path / "absent.pth", tmp_path / "weights.zip"):
        for name in (None, TINY):
            with pytest.raises(InputError) as error:
                zoo.from_checkpoint(path, name)
            assert path.name in str(error.value)
            assert "\n" not in str(error.value)
    assert not marker.exists()


def test_weights_of_no_network_of_the_zoo(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "stranger.pth")
    with pytest.raises(InputError, match=r"no entry, such as conv\.weight, is known"):
        zoo.from_checkpoint(tmp_path / "stranger.pth")
    torch.save(state | {"extra.weight": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(InputError, match=rf"fit no network.*{TINY}: 1 unexpected, first extra\.weight"):
        zoo.from_checkpoint(tmp_path / "more.pth")


def vit(start: list[Any], block: dict[str, Any], head: dict[str, Any]) -> Arch:
    made = MB3D(3, 16, 16, **{"residual": "plain", "bias": False, "eps": 1e-6, **block})
    return Arch(64, 3, (*start, made, made, Head(7, **{"eps": 1e-6, **head})))


PATCH, TOKEN = Patch(48), {"pool": "token"}
FORMS: dict[str, tuple[dict[str, Any], Arch]] = {
    "layer scale": ({"init_values": 0.1}, vit([PATCH, ClassToken(), Position()], {"residual": "layer_scale"}, TOKEN)),
    "qk norm": ({"qk_norm": True}, vit([PATCH, ClassToken(), Position()], {"qk_norm": True}, TOKEN)),
    "pre-norm": (
        {"pre_norm": True},
        vit([Patch(48, bias=False), ClassToken(), Position(), Norm(1e-6)], {}, TOKEN),
    ),
    "registers": ({"reg_tokens": 4}, vit([PATCH, ClassToken(5), Position()], {}, TOKEN)),
    "registers without places": (
        {"reg_tokens": 4, "no_embed_class": True},
        vit([PATCH, Position(), ClassToken(5)], {}, TOKEN),
    ),
    "mean": ({"class_token": False, "global_pool": "avg"}, vit([PATCH, Position()], {}, {"mean_first": True})),
    "mean beside a class token": (
        {"global_pool": "avg", "fc_norm": False},
        vit([PATCH, ClassToken(), Position()], {}, {}),
    ),
    "distillation token": (
        {"distilled": True},
        vit([PATCH, ClassToken(2), Position()], {}, {"pool": "token", "distilled": True}),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_vit_against_timm(form: str) -> None:
    given, arch = FORMS[form]
    kind = VisionTransformerDistilled if given.get("distilled") else VisionTransformer
    more = {name: value for name, value in given.items() if name != "distilled"}
    theirs = kind(img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=7, **more).eval()
    state = of_timm(theirs)
    naming = next(FAMILY.namings(arch))
    assert check(arch, naming, (), state) is None
    network = arch.build().eval()
    network.load_state_dict(fitted(arch, naming, state))
    assert sum(spec.params(before) for spec, before in arch.steps()) == sum(w.numel() for w in theirs.parameters())
    assert Arch.from_json(arch.to_json()) == arch
    with torch.no_grad():
        torch.testing.assert_close(network(image(64, 2)), theirs(image(64, 2)), rtol=1e-4, atol=1e-5)


def test_sines() -> None:
    """The first token's are 0 and 1 in turn; a shift turns each pair of channels by an angle of its own."""
    block = Position(form="sines")
    arch = Arch(32, 3, (Patch(8, 8), ClassToken(), block, MB3D(2, 4, 4, bias=False), Head(3, pool="token")))
    table = arch.build().blocks[2].table
    assert table.shape == (17, 8)
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0] * 4))
    pairs = table.view(17, 4, 2)
    torch.testing.assert_close(pairs.square().sum(-1), torch.ones(17, 4))
    steps = (pairs[1:] * pairs[:-1]).sum(-1)  # cosines of the angles between neighbours
    torch.testing.assert_close(steps, torch.cos(10000.0 ** -(torch.arange(4) / 4)).expand(16, 4))
    assert arch.blocks[2].params(arch.states[2]) == 17 * 8 and not table.requires_grad
    with pytest.raises(ValueError, match="sines number tokens"):
        Arch(32, 3, (block, Patch(8, 8), Head(3)))
