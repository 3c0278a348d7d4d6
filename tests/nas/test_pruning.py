"""`nas prune` on a ViT of 32 pixels: rows measured, budget held, files that load, and bad input."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latency_tables import SHIPPED
from nas.cost import macs
from nas.errors import BudgetError
from nas.launch.evaluate import evaluate_network
from nas.networks import network_named
from nas.pruning import prune_network
from nas.runs import save_weights
from search_spaces import zoo
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, ClassToken, Head, Patch, Position
from search_spaces.errors import InputError
from tests.cli.running import nas, started
from tests.nas.pruning_toy import Prices, priced
from tests.nas.test_measure import TARGET

SHIPPED_TABLE = next(SHIPPED.glob("hybrid_digits--cpu-ort-fp32-b1-t1--*.csv"))
pytestmark = pytest.mark.timeout(400)

FEW = ("heads", "neurons", "blocks")  # of which rows are measured in seconds
BLOCK = MB3D(2, 16, 16, 64 / 32, residual="plain", bias=False)
ARCH = Arch(32, 3, (Patch(32, 8), ClassToken(), Position(), *[BLOCK] * 4, Head(10, pool="token")))


@pytest.fixture(scope="module", autouse=True)
def own_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for each worker: two that measure the same table would be in each other's way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights."""
    torch.manual_seed(0)
    network = ARCH.build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    path = tmp_path_factory.mktemp("model") / "vit.safetensors"
    save_weights(path, network.state_dict(), ARCH)
    return path


@pytest.fixture(scope="module")
def pruned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("runs") / "pruned"
    return prune_network(str(model), "digits", out, target=TARGET.name, parts=FEW, speedup=1.5, images=64), out


def test_what_is_left_is_as_fast_as_asked(pruned: tuple[dict[str, Any], Path]) -> None:
    found, out = pruned
    before, after = found["before"], found["after"]
    assert after["measured_median_ms"] <= found["budget_ms"] and found["speedup_measured"] > 1.2
    times = {f"measured_{name}ms" for name in ("", "median_", "mean_", "p90_", "p95_")}
    assert before.keys() == after.keys() == {"params", "macs", *times, "peak_mb", "acc", "agreement", "distance"}
    assert after["macs"] < before["macs"] == macs(ARCH) and found["speedup_macs"] == before["macs"] / after["macs"]
    assert len(found["blocks"]) == 4 and all(0 <= row["ms_share"] <= 1 for row in found["blocks"])
    assert json.loads((out / "summary.json").read_text()) == found
    named = network_named(str(out))
    assert named.network is not None and macs(named.arch) == after["macs"]
    assert evaluate_network(str(out), "digits", "test", None)["acc"] == pytest.approx(after["acc"])


def pruned_by(*words: object) -> Any:
    """What `nas prune` prints. Where a network of a tenth of a millisecond took longer the second time, its advice is followed: again, with --resume."""
    found = started("prune", *words, "--json")
    for _ in range(3):
        if found.returncode == 3 and "measure again on a quieter machine, with --resume" in found.stderr:
            found = started("prune", *words, "--resume", "--json")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
def test_the_command_does_it_and_refuses_what_it_cannot(
    pruned: tuple[dict[str, Any], Path], model: Path, tmp_path: Path
) -> None:
    """By the table that is there by then."""
    flags = ("--data", "digits", "--target", TARGET.name, "--parts", ",".join(FEW), "--images", 32)
    training = ("--train-epochs", 1, "--batch-size", 32, "--lr", 1e-4, "--weight-decay", 0.01, "--ema", 0.5)
    training += ("--mixup", 0.2, "--cutmix", 0.3, "--max-drop", 0.99, "--seed", 2)
    found = pruned_by(model, *flags, "--speedup", 1.1, *training, "--out", tmp_path / "again")
    recipe = json.loads((tmp_path / "again" / "trained" / "config.json").read_text())["recipe"]
    wanted = {"epochs": 1, "batch_size": 32, "lr": 1e-4, "weight_decay": 0.01, "ema": 0.5, "mixup": 0.2, "cutmix": 0.3}
    assert recipe.items() >= {**wanted, "seed": 2}.items() and found["max_drop"] == 0.99
    assert found["training"]["epochs"] == 1 and found["val_acc"].keys() == {"before", "after"}
    medians = [found[side]["measured_median_ms"] for side in ("after", "before")]
    assert medians[0] <= found["budget_ms"] < medians[1]
    assert nas("describe", tmp_path / "again")["macs"] == found["after"]["macs"]
    wrong = ("--speedup", 2, "--adaptive", "--out", tmp_path / "wrong")
    assert "--adaptive is of patches that are dropped; add tokens to --parts" in nas(
        "prune", model, *flags, *wrong, code=2
    )
    assert "--max-drop is a share" in nas("prune", model, *flags, "--max-drop", 1, code=2)
    assert "nowhere is no zoo name" in nas("prune", "nowhere", *flags, "--speedup", 2, code=2)
    line = nas("prune", model, *flags, "--budget-ms", 1e-4, "--out", tmp_path / "never", code=3)
    assert "the cheapest network of these blocks is predicted to take" in line


@pytest.mark.slow
def test_the_command_takes_several_targets(pruned: tuple[dict[str, Any], Path], model: Path, tmp_path: Path) -> None:
    """The second with images in twos, and so with a file of its own, which takes longer."""
    targets, out = (TARGET.name, "cpu-ort-fp32-b2-t1"), tmp_path / "both"
    flags = ("--data", "digits", *(word for name in targets for word in ("--target", name)), "--parts", ",".join(FEW))
    found = pruned_by(model, *flags, "--images", 32, "--speedup", 1.2, "--out", out)
    assert tuple(one["target"] for one in found["targets"]) == targets and found["target"] == TARGET.name
    for one, folder in zip(found["targets"], (out, out / targets[1]), strict=True):
        assert 0 < one["onnx_measured_median_ms"] <= one["budget_ms"] and one["measured_median_ms"] <= one["budget_ms"]
        assert one["budget_ms"] < one["before"]["measured_median_ms"] and one["onnx"] == str(folder / "model.onnx")
    assert found["targets"][1]["measured_ms"] > found["after"]["measured_ms"] == found["targets"][0]["measured_ms"]
    both = ("--budget-ms", 1000, "--budget-ms", 1e-4, "--out", tmp_path / "never")
    line = nas("prune", model, *flags, *both, code=3)
    assert f"ms on {TARGET.name} and " in line and f"over the budget of 0.0001 ms on {targets[1]}" in line
    thrice = ("--budget-ms", 1) * 3
    assert "--budget-ms is given 3 times for 2 targets" in nas("prune", model, *flags, *thrice, code=2)


def test_a_run_that_is_done_is_not_done_again(pruned: tuple[dict[str, Any], Path], model: Path) -> None:
    found, out = pruned
    again = prune_network(str(model), "digits", out, target=TARGET.name, parts=FEW, speedup=1.5, images=64, resume=True)
    assert again == found
    with pytest.raises(InputError, match="already holds a run"):
        prune_network(str(model), "digits", out, target=TARGET.name, parts=FEW, speedup=1.5, images=64)
    with pytest.raises(InputError, match=r"speedup = 1\.5"):
        prune_network(str(model), "digits", out, target=TARGET.name, parts=FEW, speedup=2, images=64, resume=True)


def test_a_budget_that_is_met_already_changes_nothing(
    pruned: tuple[dict[str, Any], Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prune_network(
        str(model), "digits", tmp_path / "run", target=TARGET.name, parts=FEW, budget_ms=1000, images=64
    )
    assert (
        found["speedup_measured"] == 1
        and found["divergence"] == 0
        and network_named(str(tmp_path / "run")).arch == ARCH
    )
    assert "within the budget of 1000 ms" in capsys.readouterr().err


def test_a_budget_that_nothing_holds_names_the_cheapest(
    pruned: tuple[dict[str, Any], Path], model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"the cheapest network of these blocks is predicted to take \d"):
        prune_network(str(model), "digits", tmp_path / "run", target=TARGET.name, parts=FEW, budget_ms=1e-4, images=64)


class Stubborn(Prices):
    """By the clock, what is left of the network takes a little more than half of its time, whatever that is."""

    def timed(self, arch: Arch) -> Any:
        found = super().timed(ARCH)
        if arch != ARCH:
            found.ms = found.median = 0.501 * found.ms
        return found


def test_where_table_and_clock_disagree_the_files_to_measure_anew_are_named(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "tables" / "remains"
    wanted = rf"after 6 tries .* remove {table}\.csv and \.json and prune again with --target {TARGET.name}, which"
    with priced(Stubborn(path=table)), pytest.raises(BudgetError, match=wanted) as found:
        prune_network(
            str(model), "digits", tmp_path / "run", target=TARGET.name, parts=("heads", "neurons"), speedup=2, images=32
        )
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("model_name", "data", "how", "message"),
    [
        ("{file}", "digits", {}, "either --budget-ms MS or --speedup X"),
        ("{file}", "digits", {"budget_ms": 1, "speedup": 2}, "either --budget-ms MS or --speedup X"),
        ("{file}", "digits", {"speedup": 1.0}, "--speedup must be above 1"),
        ("{file}", "digits", {"budget_ms": float("nan")}, "--budget-ms must be positive"),
        ("{file}", "digits", {"speedup": 2, "images": 4097}, "--images must be at most 4096, since .*, got 4097"),
        ("deit_tiny_patch16_224", "digits", {"speedup": 2}, "has no weights to prune"),
        ("{hybrid}", "digits", {"speedup": 2}, "cannot be pruned"),
        (
            "{file}",
            "digits",
            {"speedup": 2, "table": SHIPPED_TABLE, "target": None},
            "lacks .* rows of what may be left of",
        ),
    ],
)
def test_bad_input_is_one_line(
    model_name: str, data: str, how: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    hybrid = tmp_path / "l1.safetensors"
    if model_name == "{hybrid}":
        arch = zoo.arch("efficientformer_l1").with_classes(10)
        save_weights(hybrid, arch.keeping([]).build().state_dict(), arch)
    name = model_name.format(file=model, hybrid=hybrid)
    with pytest.raises(InputError, match=message) as found:
        prune_network(name, data, tmp_path / "run", **{"target": TARGET.name, "parts": FEW, "foreign": True, **how})
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()
