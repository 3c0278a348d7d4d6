"""Checkpoints from elsewhere on the command line: evaluated, exported, retrained, or refused in one line."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from search_spaces import zoo
from tests.cli.running import nas
from tests.nas.toy import toy

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeiT-Ti of the toy's size and classes, as training scripts save one."""
    torch.manual_seed(0)
    side = toy(512).image_size
    network = VisionTransformer(img_size=side, patch_size=16, embed_dim=192, num_heads=3, num_classes=4)
    path: Path = tmp_path_factory.mktemp("checkpoint") / "deit.pth"
    torch.save({"model": network.state_dict(), "epoch": 3}, path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_is_a_network(checkpoint: Path, tmp_path: Path) -> None:
    found = nas("evaluate", checkpoint, "--data", "toy", "--split", "val")
    named = nas("evaluate", TINY, "--weights", checkpoint, "--data", "toy", "--split", "val")
    assert (found["acc"], found["images"]) == (named["acc"], named["images"]) == (found["acc"], 512)
    exported = nas("export", TINY, "--weights", checkpoint, "--data", "toy", "--out", tmp_path / "e")
    assert exported["max_abs_diff"] <= 1e-4
    assert nas("evaluate", exported["path"], "--data", "toy", "--split", "val")["acc"] == found["acc"]
    assert nas("describe", checkpoint)["params"] < nas("describe", TINY)["params"]
    still = ("--epochs", 1, "--batch-size", 32, "--lr", 1e-12, "--label-smoothing", 0)
    nas("retrain", checkpoint, "--data", "toy", *still, "--out", tmp_path / "n")
    weights = tmp_path / "n" / "weights.safetensors"
    tuned, start = (zoo.from_checkpoint(path).parameters() for path in (weights, checkpoint))
    assert all(torch.allclose(own, given, atol=1e-6) for own, given in zip(tuned, start, strict=True))
    assert "leave out --weights" in nas("evaluate", exported["path"], "--weights", checkpoint, "--data", "toy", code=2)
    assert nas("evaluate", weights, "--data", "toy")["acc"] == nas("evaluate", tmp_path / "n", "--data", "toy")["acc"]


def test_what_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    out = ("--out", tmp_path / "e")
    assert "cut.pth" in nas("export", cut, *out, code=2)
    assert "not those of efficientformer_l1" in nas(
        "export", "efficientformer_l1", "--weights", checkpoint, *out, code=2
    )
    assert "give the checkpoint's path alone" in nas("export", checkpoint, "--weights", checkpoint, *out, code=2)
    assert "has no weights to evaluate" in nas("evaluate", TINY, "--data", "toy", code=2)
    assert not (tmp_path / "e").exists()
