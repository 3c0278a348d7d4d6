"""Bad input: one clear line on stderr, the right exit code, no traceback, nothing half-written."""

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from latency_tables import SHIPPED
from nas.runs import Run
from search_spaces import SPACES
from tests.cli.running import here, started
from tests.search_spaces.test_arch import SMALL

TABLE = next(SHIPPED.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.csv"))
LIMIT = 200_000  # bytes that a file may have when the disk is "full"


def nas(*words: object, full_disk: bool = False) -> subprocess.CompletedProcess[str]:
    """A command that has run here, or in a process that may write `LIMIT` bytes to a file."""
    if not full_disk:
        return here(*words)

    def shrink() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    command = [sys.executable, "-c", "from nas.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, preexec_fn=shrink)


def refused(found: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Exit code, and one line (after progress, if any) that holds the parts."""
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    last = found.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("train", "--space", "hybrid_mars", "--data", "digits64"), ("hybrid_mars", "hybrid_digits")),
        (("train", "--space", "hybrid_digits", "--data", "digits65"), ("digits65", "digits64")),
        (("measure", "--space", "hybrid_mars"), ("hybrid_mars", "hybrid_digits")),
        (("measure", "--space", "hybrid_digits", "--nets", 20), ("--nets", "--from TABLE")),
        (("measure", "--space", "hybrid_digits", "--from", "nowhere.csv"), ("nowhere.json", "does not exist")),
        (("measure", "--space", "vit_digits", "--from", TABLE), ("hybrid_digits", "--from needs one of vit_digits")),
        (("measure", "--space", "hybrid_digits", "--from", TABLE, "--nets", 3), ("--nets must be at least 8, got 3",)),
        (("measure", "--space", "hybrid_digits", "--target", "toaster-ort-fp32-b1-t1"), ("toaster", "cpu-ort-fp32")),
        (("describe", "efficientformer_l9"), ("efficientformer_l9", "efficientformer_l1")),
        (
            ("export", "dvt_deit_small", "--budget-ms", 5),
            ("--budget-ms", "winner of a search run, and dvt_deit_small is none"),
        ),
        (("describe", "deit_tiny_patch16_224", "--budget-ms", 5), ("--budget-ms", "leave it out")),
        (("search", "--supernet", "nowhere", "--table", "t.csv", "--budget-ms", "-1"), ("--budget-ms", "-1")),
        (("search", "--supernet", "nowhere", "--table", "t.csv", "--budget-ms", "fast"), ("--budget-ms", "fast")),
        (("search", "--supernet", "nowhere", "--table", "t.csv", "--budget-ms", "1"), ("nowhere", "no run")),
        (("validate", "nowhere.csv"), ("nowhere.json", "does not exist")),
        (("evaluate", "nowhere", "--data", "digits64"), ("nowhere", "run folder", "efficientformer_l1")),
        (("export", "efficientformer_l1", "--format", "floppy"), ("floppy", "onnx")),
        (
            ("export", "sret_t", "--target", "cpu-eager-fp32-b1-t1"),
            ("timed by targets of ort", "not of eager", "--target cpu-ort-fp32-b1-t1"),
        ),
        (
            ("export", "sret_t", "--target", "cpu-openvino-int8-b1-t1"),
            ("files compute in float", "--target cpu-openvino-fp32-b1-t1"),
        ),
        (("report", "nowhere"), ("nowhere", "no run")),
        (
            ("search", "--supernet", "s", "--table", "a.csv", "--budget-ms", 1, "--supernet=t"),
            ("--supernet is given 2 times; give it once",),
        ),
        (
            ("search", "--supernet", "s", *("--table", "a.csv") * 2, "--target", "b", *("--budget-ms", 1) * 2),
            ("--budget-ms is given 2 times for 3 targets; give it once for all, or once each",),
        ),
        (
            ("prune", "m", "--data", "digits", *("--target", "cpu-ort-fp32-b1-t1") * 2, "--budget-ms", 1),
            ("cpu-ort-fp32-b1-t1 is given twice, by --table or --target; give each target once",),
        ),
        (
            ("prune", "m", "--data", "digits", "--target", "cpu-ort-fp32-b1-t1", *("--speedup", 2) * 2),
            ("--speedup is given 2 times; give it once",),
        ),
        (("measure", "--space", "hybrid_digits", "--from", "nowhere.csv", "--from", "b.csv"), ("nowhere.json",)),
    ],
)
def test_names_that_do_not_exist(words: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    out = () if words[0] in ("describe", "search", "validate", "evaluate", "report") else ("--out", tmp_path / "out")
    refused(nas(*words, *out), 2, *parts)
    assert not (tmp_path / "out").exists()


def test_corrupt_architecture_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(SMALL.to_json()[:-20])
    refused(nas("describe", path), 2, str(path), "not valid JSON")


def test_truncated_weights(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "r", "retrain", {}, resume=False)
    arch = SPACES["hybrid_digits"]().smallest
    run.save_network(arch, arch.build().state_dict())
    weights = tmp_path / "r" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(
        nas("export", tmp_path / "r", "--out", tmp_path / "out"),
        2,
        "weights.safetensors",
        "not a whole safetensors file",
    )
    assert not (tmp_path / "out").exists()


def folder(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(12):
                Image.new("RGB", (80, 70), (20 * index, 100, 50)).save(root / split / name / f"{index}.png")
    return root


def test_empty_image_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        nas(
            "train",
            "--space",
            "hybrid_digits",
            "--data",
            f"imagefolder:{tmp_path / 'empty'}",
            "--out",
            tmp_path / "out",
        ),
        2,
        "empty",
    )
    assert not (tmp_path / "out").exists()


def test_one_unreadable_image_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "images")
    (root / "train" / "cat" / "3.png").write_bytes(b"not a picture")
    words = ("train", "--space", "hybrid_digits", "--data", f"imagefolder:{root}", "--epochs", 1, "--batch-size", 8)
    refused(nas(*words, "--out", tmp_path / "out"), 2, "3.png")


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Run.start(tmp_path / "r", "train", {"seed": 1}, resume=False)
    before = (tmp_path / "r" / "config.json").read_text()
    refused(nas("train", "--space", "hybrid_digits", "--data", "digits64", "--out", tmp_path / "r"), 2, "--resume")
    assert (tmp_path / "r" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/locked/a.json"),
            "/locked/a.json: Permission denied; check the path",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/cd/a.json"),
            "/cd/a.json: Read-only file system; check the path",
        ),
    ],
)
def test_what_may_not_be_read_is_one_line(error: OSError, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bool:
        raise error

    monkeypatch.setattr(Path, "is_file", denied)
    refused(nas("describe", "folder"), 2, "cannot read or write", line)


def test_a_name_too_long_for_a_file_is_one_line() -> None:
    """As where an architecture is given in place of its file."""
    refused(nas("describe", SMALL.to_json()), 2, "File name too long; check the path")


def test_a_taken_folder_is_refused_before_anything_is_read_or_measured(tmp_path: Path) -> None:
    Run.start(tmp_path / "r", "search", {"seed": 1}, resume=False)
    target = ("--target", "cpu-ort-fp32-b1-t1", "--out", tmp_path / "r")
    refused(nas("search", "--supernet", "nowhere", "--budget-ms", 1, *target), 2, "already holds a run; add --resume")
    words = ("retrain", "deit_tiny_patch16_224", "--data", "digits", "--thresholds", *target)
    refused(nas(*words), 2, "already holds a run; add --resume")


def test_too_few_images_for_a_batch_leave_no_run(tmp_path: Path) -> None:
    """So that the same command with a smaller batch is not told of a run that is there."""
    network = tmp_path / "a.json"
    network.write_text(SPACES["hybrid_digits"](classes=2).smallest.to_json())
    words = ("retrain", network, "--data", f"imagefolder:{folder(tmp_path / 'images')}", "--out", tmp_path / "out")
    refused(nas(*words), 2, "fewer than a batch of 128; give a smaller --batch-size")
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The exported network is larger than any file may be."""
    found = nas("export", "efficientformer_l1", "--out", tmp_path / "out", full_disk=True)
    refused(found, 2, "cannot write", ".onnx")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of ten classes with random weights, as a run."""
    path = tmp_path_factory.mktemp("run") / "r"
    run = Run.start(path, "retrain", {}, resume=False)
    arch = SPACES["hybrid_digits"]().smallest
    run.save_network(arch, arch.build().state_dict())
    return path


def test_data_of_other_classes(ten_classes: Path, tmp_path: Path) -> None:
    """Two classes here; numbers from such a network would mean nothing."""
    data = f"imagefolder:{folder(tmp_path / 'images')}"
    refused(nas("evaluate", ten_classes, "--data", data), 2, "tells 10 classes apart", "has 2")
    small = tmp_path / "small.json"
    small.write_text(SPACES["hybrid_digits"](classes=2).smallest.to_json())
    words = ("retrain", small, "--data", data, "--batch-size", 8, "--teacher", ten_classes, "--out", tmp_path / "out")
    refused(nas(*words), 2, "the teacher tells 10 classes apart, the network 2")
    assert not (tmp_path / "out").exists()


def test_missing_option_is_the_parsers_own_box() -> None:
    found = nas("search")
    assert found.returncode == 2
    assert "Missing option" in found.stderr
    assert "Traceback" not in found.stderr


def test_json_is_one_object_and_nothing_else() -> None:
    found = started("describe", "efficientformer_l1", "--json")
    assert found.returncode == 0, found.stderr
    value = json.loads(found.stdout)
    assert value["params"] == 12289928
    assert value["macs"] == 1291284736
    for other in ("macs_fvcore", "macs_thop"):
        assert value[other] == pytest.approx(value["macs"], rel=0.01)
    assert value["predicted_ms"] is None
    assert len(value["blocks"]) == 20
