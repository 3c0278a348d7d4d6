"""The exported file: the network's outputs, in operators that ONNX Runtime fuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from compress import calibrate, counts_of, thresholds_of
from nas.cli.main import app
from nas.export import _margin, check_file, export_onnx
from nas.networks import Named
from nas.runtimes.onnxruntime import batch_of, from_file
from nas.runtimes.onnxruntime import export_onnx as export_fast
from nas.target import Target
from nas.train.retrain import fresh_network
from search_spaces import Arch, InputError
from search_spaces.arch import Network
from search_spaces.blocks import (
    MB3D,
    MB4D,
    AttentionEmbed,
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
    Patch,
    Position,
    SideTokens,
    Stem,
)
from search_spaces.tokens import Chosen
from tests.cli.running import printed
from tests.search_spaces.test_arch import SMALL
from tests.search_spaces.test_token_prune import hybrid, network, vit

TARGET = Target.parse("cpu-ort-fp32-b2-t1")


def test_outputs_agree_and_another_network_does_not(tmp_path: Path) -> None:
    built = fresh_network(SMALL, 0)
    path = export_onnx(built, SMALL.example(2), tmp_path / "a.onnx")
    images = SMALL.example(9)  # one more than whole batches
    checked = check_file(path, built, images, TARGET)
    assert checked.images == 9
    assert checked.max_abs_diff <= 1e-5
    assert checked.top1_agreement == 1
    with pytest.raises(InputError, match="gives other scores than the network"):
        check_file(path, fresh_network(SMALL, 1), images, TARGET)
    assert not path.exists()


FORMS = Arch(
    64,
    3,
    (
        Stem(16),
        Position(),
        MB4D(2, mixer="depthwise", residual="coefficients"),
        Embed(24),
        MB3D(2, 4, 8, 2, loops=2, nll=1, groups=(4, 2), orders=("strided", "permuted"), residual="coefficients"),
        Embed(32, "separable"),
        MB3D(2, 4, 8, 2, groups=(4,), orders=("permuted",), inverse=False, bias=False, residual="plain"),
        Embed(64, "depthwise", norm=False),
        MB3D(2, 4, 8, 2, 0.5, groups=(2,), orders=("contiguous",)),
        Head(5, mean_first=True),
    ),
)


MAPS = Arch(  # the strided attention's maps are of 8 and 5 places a side
    64,
    3,
    (
        Stem(16, act="gelu"),
        Embed(24),
        MB4D(2, mixer="depthwise"),
        MapAttention(2, 4, 8, 2, 0.5, stride=2),
        AttentionEmbed(32, 2, 4, 8),
        MapAttention(2, 4, 8, 2, 0.5),
        Head(5, distilled=True, norm="batch"),
    ),
)


MOBILE = Arch(  # the transformers' maps are of 8 and 4 places a side
    64,
    3,
    (
        Conv(16, stride=2),
        InvertedResidual(16, 1, 2),
        InvertedResidual(24, 2, 2),
        InvertedResidual(32, 2),
        MobileViT(32, 2),
        InvertedResidual(48, 2),
        MobileViT(24, 3),
        Conv(96, 1),
        Head(5, norm="none"),
    ),
)

TOKENS = MB3D(2, 8, 8, 2, 0.5, bias=False, qk_norm=True, eps=1e-6)
VIT = Arch(  # class token, distillation token and two registers
    32,
    3,
    (
        Patch(16, 4, bias=False),
        ClassToken(4),
        Position("sines"),
        Norm(1e-6),
        TOKENS,
        TOKENS,
        Head(5, distilled=True, pool="token"),
    ),
)


STREAMS = Arch(  # a map and three tokens; the second to last block changes the map's width
    64,
    3,
    (
        Stem(16, convs=1, act="relu6", bias=False),
        LiteBottleneck(16, groups=2),
        SideTokens(3, 32),
        MobileFormerEmbed(24, groups=2),
        MobileFormer(24, 3, groups=2),
        MobileFormer(32, 2),
        MobileFormerPool(64, groups=2),
        Head(5, norm="none"),
    ),
)


def test_files_have_no_fused_attention(tmp_path: Path) -> None:
    """Which exporters take apart in a way of their own, so that files would differ from what tables are measured on."""
    built = fresh_network(VIT, 0).eval()
    kinds = []
    for content in (
        export_onnx(built, VIT.example(), tmp_path / "a.onnx").read_bytes(),
        export_fast(built, VIT.example()),
    ):
        nodes = onnx.load_from_string(content).graph.node
        kinds.append({kind: sum(node.op_type == kind for node in nodes) for kind in ("MatMul", "Softmax", "Sqrt")})
    assert kinds[0] == kinds[1] and kinds[0]["Softmax"] == 2


EXPORTED = [(VIT, 1), (VIT, 2), (FORMS, 1), (FORMS, 2), (MAPS, 1), (MAPS.at(40), 2), (STREAMS, 2), (MOBILE.at(40), 2)]


@pytest.mark.parametrize(("arch", "batch"), EXPORTED)
def test_every_form_of_block_is_exported(arch: Arch, batch: int, tmp_path: Path) -> None:
    """By dynamo for users, and by the fast exporter for timing."""
    built = fresh_network(arch, 0).eval()
    target = Target.parse(f"cpu-ort-fp32-b{batch}-t1")
    path = export_onnx(built, arch.example(batch), tmp_path / "a.onnx")
    images = arch.example(6)
    assert check_file(path, built, images, target).max_abs_diff <= 1e-4
    (tmp_path / "fast.onnx").write_bytes(export_fast(built, arch.example(batch)))
    assert check_file(tmp_path / "fast.onnx", built, images, target).max_abs_diff <= 1e-4


@pytest.mark.slow
def test_a_published_network_is_exported_by_name(tmp_path: Path) -> None:
    words = ["export", "efficientformerv2_s0", "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["max_abs_diff"] <= 1e-4 and result["top1_agreement"] >= 0.999 and result["measured_ms"] > 0
    assert Path(result["path"]).is_file()


def test_every_gelu_is_fused(tmp_path: Path) -> None:
    """Left in pieces or as the standard operator, GELU makes the file slower than the table predicts."""
    path = export_onnx(fresh_network(SMALL, 0), SMALL.example(), tmp_path / "a.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert not [node for node in nodes if node.op_type == "Erf"]
    fused = [node for node in nodes if node.domain == "com.microsoft" and node.op_type.endswith("Gelu")]
    assert len(fused) == 3


def test_the_gelu_by_tanh_is_fused_too(tmp_path: Path) -> None:
    arch = Arch(32, 3, (Patch(16, 8), MB3D(2, 8, 8, 2, residual="plain", bias=False, mlp="gelu_tanh"), Head(4)))
    path = export_onnx(fresh_network(arch, 0), arch.example(), tmp_path / "a.onnx")
    session = from_file(path, SINGLE)
    operators = [node.op_type for node in onnx.load(session._graph).graph.node]
    assert "FastGelu" in operators and "Tanh" not in operators
    assert check_file(path, fresh_network(arch, 0).eval(), arch.example(4), SINGLE).max_abs_diff < 1e-5


SINGLE = Target.parse("cpu-ort-fp32-b1-t1")


def logits(network: Network | Path, images: torch.Tensor) -> NDArray[np.float32]:
    """Of a network or its file, image by image."""
    if isinstance(network, Path):
        session = ort.InferenceSession(str(network), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"images": image.numpy()})[0] for image in images.split(1)])
    with torch.no_grad():
        return torch.cat([network(image) for image in images.split(1)]).numpy()


def pruned(arch: Arch, images: torch.Tensor) -> Network:
    """A network whose thresholds keep on these images what its specs say, with scores far enough apart for float32."""
    built = network(arch, spread=1.0)
    calibrate(built, arch, [(images, torch.zeros(len(images)))])
    return built


@pytest.mark.parametrize("make", [hybrid, vit])
def test_a_file_keeps_of_each_image_what_the_network_keeps(make: Callable[..., Arch], tmp_path: Path) -> None:
    """The network runs on the batch, with its tokens packed, the file on one image after the other."""
    arch = make((40, 20), True)
    images = arch.example(9, seed=1)
    built = pruned(arch, images)
    assert len({tuple(row) for row in counts_of(built, [(images, images)]).tolist()}) >= 8
    path = export_onnx(built, arch.example(), tmp_path / "a.onnx")
    checked = check_file(path, built, images, SINGLE)
    assert checked.max_abs_diff <= 1e-5 and checked.top1_agreement == 1
    np.testing.assert_allclose(logits(path, images), logits(built, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [hybrid, vit])
def test_a_file_never_drops_the_last_patch(make: Callable[..., Arch], tmp_path: Path) -> None:
    arch = make((40, 20), True)
    images = arch.example(3)
    built = pruned(arch, images)
    for high in (1e6, -1.0):
        for threshold in thresholds_of(built, arch):
            torch.nn.init.constant_(threshold, high)
        path = export_onnx(built, arch.example(), tmp_path / "a.onnx")
        assert check_file(path, built, images, SINGLE).max_abs_diff <= 1e-5
        assert counts_of(built, [(images, images)]).unique().tolist() == [1 if high > 0 else 64]


def test_a_file_of_many_images_keeps_fixed_numbers(tmp_path: Path) -> None:
    arch = vit((40, 20), True)
    built = pruned(arch, arch.example(6))
    with pytest.raises(InputError, match="one by one: pass a target of batch 1, or --static"):
        export_onnx(built, arch.example(2), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
    static = Named(arch, built).static()
    assert static.arch == vit((40, 20), False) and static.network is not None
    path = export_onnx(static.network, arch.example(2), tmp_path / "a.onnx")
    assert check_file(path, static.network, arch.example(7), TARGET).max_abs_diff <= 1e-5


def test_the_command_exports_batches_of_the_mean_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(vit((40, 20), True).to_json())
    words = ["export", str(tmp_path / "a.json"), "--target", TARGET.name, "--out", str(tmp_path), "--json"]
    refused, found = (CliRunner().invoke(app, [*words, *flags]) for flags in ((), ("--static",)))
    assert isinstance(refused.exception, InputError) and "--static" in str(refused.exception)
    with pytest.raises(InputError, match="--static fixes what thresholds choose, and contours_vit has none"):
        printed("export", "contours_vit", "--static", "--out", tmp_path / "none")
    assert found.exception is None
    static = vit((40, 20), False).id
    assert (
        json.loads(found.stdout)["path"] == str(tmp_path / f"{static}.onnx")
        and batch_of(tmp_path / f"{static}.onnx") == 2
    )


def test_images_that_rounding_decides_on_need_the_same_class_alone(tmp_path: Path) -> None:
    """The file keeps a patch of one image that the network drops; by a hair that is nothing, by more it is another network."""
    arch = vit((40, 20), True)
    images = arch.example(4)
    built = pruned(arch, images)
    threshold = thresholds_of(built, arch)[0]
    trace: list[Chosen] = []
    with torch.no_grad():
        built(images, trace)
        near = 64 * trace[0].scores[0].sort(descending=True).values[30].item()
    for hair, passes in ((1e-6, True), (1e-2, False)):
        torch.nn.init.constant_(threshold, near - hair)
        path = export_onnx(built, arch.example(), tmp_path / "a.onnx")
        kept = counts_of(built, [(images, images)])
        torch.nn.init.constant_(threshold, near + hair)
        assert counts_of(built, [(images, images)])[0, 0] < kept[0, 0]
        if passes:
            assert check_file(path, built, images, SINGLE).max_abs_diff <= 1e-5
            assert float(np.abs(logits(path, images) - logits(built, images))[0].max()) > 1e-4
        else:
            with pytest.raises(InputError, match="gives other scores than the network"):
                check_file(path, built, images, SINGLE)


def test_rounding_decides_where_the_last_that_stays_is_as_good_as_the_next() -> None:
    scores, kept = torch.tensor([0.4, 0.2, 0.2, 0.1]), torch.tensor([True, True, False, False])
    assert _margin(scores, kept, None) == 0 < _margin(scores, kept.roll(2), 0.15)
    assert _margin(scores, torch.ones(4, dtype=torch.bool), None) == float("inf")


@pytest.mark.parametrize(
    ("scores", "cut", "margin"),
    [
        ((0.5, 0.3, 0.1), 0.4, 0.1),
        ((0.41, 0.1, 0.05), 0.4, 0.3),  # the best stays even if it is not above the threshold
        ((0.31, 0.3, 0.1), 0.4, 0.01),  # none is above it: which one is the best decides
        ((0.31, 0.3, 0.1), 0.2, 0.1),
        ((0.4,), 0.4, float("inf")),
    ],
)
def test_the_best_patch_stays_whatever_the_threshold(scores: tuple[float, ...], cut: float, margin: float) -> None:
    own = torch.tensor(scores).roll(1)
    assert _margin(own, own > cut, cut) == pytest.approx(margin)
