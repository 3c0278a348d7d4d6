"""Networks that drop tokens, in the runtime: what is timed is the network, with the counts that it was said to keep."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.thresholds import counts_of
from nas.export import export_onnx
from nas.runtimes import onnxruntime
from nas.runtimes.onnxruntime import Session
from nas.runtimes.random_networks import fixed_images, random_network
from nas.target import Target
from nas.thresholded import Spread, compare, in_batches, predict_images, time_images
from search_spaces import Arch, InputError
from tests.nas.test_kept_rows import MEASURED, table
from tests.nas.toy import toy_space
from tests.search_spaces.test_token_prune import hybrid, network, vit

TARGET = Target.parse("cpu-ort-fp32-b1-t1")
MAKES = [hybrid, vit]


def eager(built: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([built.eval()(torch.from_numpy(image[None])).numpy() for image in images])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", MAKES)
def test_networks_with_two_locations_are_timed_as_they_are(make: type, batch: int) -> None:
    arch: Arch = make((40, 20), False)
    target = Target.parse(f"cpu-ort-fp32-b{batch}-t1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxruntime.from_arch(arch, target)
    images = arch.example(6).numpy()
    wanted = eager(random_network(arch, torch.zeros(1)), images)
    np.testing.assert_allclose(session.run(images), wanted, rtol=0, atol=1e-5)
    assert len(session.time(3)) == 3


def kernels(session: Session) -> Counter[str]:
    """The operators that do the work; what only works out shapes is left out."""
    nodes = onnx.load(session._graph).graph.node
    heavy = {"Softmax", "NonZero", "TopK", "ArgMax", "GatherElements", "ReduceL2", "ReduceMean"}
    found = Counter(node.op_type for node in nodes if node.op_type in heavy)
    multiplies = sum("MatMul" in node.op_type or node.op_type == "Gemm" for node in nodes)
    gelus, norms = (sum(node.op_type.endswith(end) for node in nodes) for end in ("Gelu", "LayerNormalization"))
    return found + Counter(multiplies=multiplies, gelus=gelus, norms=norms)


@pytest.mark.parametrize("make", MAKES)
def test_thresholds_are_timed_at_the_counts_of_the_arch_and_their_counts_stay_open(make: type) -> None:
    """The fast graph is not that of the fixed image alone."""
    arch: Arch = make((40, 20), True)
    fixed = fixed_images((1, 3, 32, 32))
    timed = random_network(arch, torch.from_numpy(fixed))
    assert counts_of(timed, in_batches(torch.from_numpy(fixed))).tolist() == [[40, 20]]
    session = onnxruntime.from_arch(arch, TARGET)
    np.testing.assert_allclose(session.run(fixed), eager(timed, fixed), rtol=0, atol=1e-5)
    images = arch.example(8).numpy()
    assert len({tuple(own) for own in counts_of(timed, in_batches(torch.from_numpy(images))).tolist()}) > 1
    np.testing.assert_allclose(session.run(images), eager(timed, images), rtol=0, atol=1e-5)


def test_the_timed_graph_works_as_the_exported_file_does(tmp_path: Path) -> None:
    arch = vit((40, 20), True)
    timed = random_network(arch, torch.from_numpy(fixed_images((1, 3, 32, 32))))
    exported = onnxruntime.from_file(export_onnx(timed, arch.example(1), tmp_path / "a.onnx"), TARGET)
    session = onnxruntime.from_arch(arch, TARGET)
    assert kernels(session) == kernels(exported)


def test_thresholds_are_not_timed_in_batches() -> None:
    with pytest.raises(InputError, match="images one by one; time it on a target of batch 1"):
        onnxruntime.from_arch(hybrid((40, 20), True), Target.parse("cpu-ort-fp32-b2-t1"))


def test_equal_weights_are_not_merged() -> None:
    """Fresh position biases are all 0; gathered once for all blocks, networks would seem a fifth faster than trained ones."""
    arch = hybrid((40, 20), False)
    weights = [weight.flatten() for weight in random_network(arch, torch.zeros(1)).parameters()]
    assert all(len(weight.unique()) > 0.99 * len(weight) for weight in weights)
    session = onnxruntime.from_arch(arch, TARGET)
    graph = onnx.load(session._graph).graph
    grids = [one for one in graph.initializer if list(one.dims) == [2, 64, 64]]
    assert len(grids) == 2, "one for each block that gathers a bias"


def test_a_spread_is_mean_and_p95() -> None:
    assert Spread.of(np.arange(101.0)) == Spread(50.0, 95.0, 101)
    known, arch = table(*(hybrid(keeps, True) for keeps in MEASURED)), hybrid((40, 20), True)
    counts = np.array([[40, 20], [10, 10]])
    ms = [known.predict(arch.keeping(keeps)).ms for keeps in ((40, 20), (10, 10))]
    found = predict_images(known, arch, counts)
    assert found.mean == pytest.approx(np.mean(ms)) and found.p95 == pytest.approx(np.quantile(ms, 0.95))


def test_images_are_timed_one_by_one_and_compared_with_the_price_of_their_counts(tmp_path: Path) -> None:
    arch = hybrid((40, 20), True)
    built, images = network(arch), arch.example(5)
    known = table(*(hybrid(keeps, True) for keeps in MEASURED))
    path = tmp_path / "a.onnx"
    path.write_bytes(onnxruntime.export_onnx(built, arch.example(1)))
    found = compare(path, built, arch, images, known, rounds=2)
    counts = counts_of(built, in_batches(images))
    assert [one["counts"] for one in found["images"]] == counts.tolist()
    assert found["kept"] == pytest.approx(counts.double().mean(0).tolist())
    assert [one["predicted_ms"] for one in found["images"]] == pytest.approx(known.price_counts(arch, counts.numpy()))
    measured = [one["measured_ms"] for one in found["images"]]
    assert min(measured) > 0 and found["measured"]["mean"] == pytest.approx(np.mean(measured))
    assert found["ratio"]["p95"] == pytest.approx(found["predicted"]["p95"] / found["measured"]["p95"])
    assert found["predicted"]["images"] == found["measured"]["images"] == 5


def test_the_image_that_is_timed_is_the_one_given(tmp_path: Path) -> None:
    """An image that breaks the graph breaks its timing."""
    session = onnxruntime.from_arch(hybrid((40, 20), True), TARGET)
    assert len(session.time(2, hybrid((40, 20), True).example(1).numpy())) == 2
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.time(1, np.zeros((1, 3, 31, 31), np.float32))


@pytest.mark.parametrize(("target", "count"), [("cpu-ort-fp32-b2-t1", 2), ("cpu-ort-fp32-b1-t1", 0)])
def test_times_of_images_need_images_and_a_batch_of_one(target: str, count: int, tmp_path: Path) -> None:
    images = np.zeros((count, 3, 32, 32), np.float32)
    with pytest.raises(InputError, match="one by one, on a target of batch 1"):
        time_images(tmp_path / "no.onnx", Target.parse(target), images, reference=toy_space().smallest)
