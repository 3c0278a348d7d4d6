"""Whatever a space holds builds, has a price, runs, and is exported with the scores that it gives."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.cost import macs, params
from nas.export import export_onnx
from nas.latency import LatencyTable
from nas.runtimes.onnxruntime import export_onnx as export_for_timing
from nas.table_file import Calibration, RowTime
from search_spaces import Arch, Space, Supernet
from search_spaces.spaces.hybrid_sizes import hybrid, hybrid_digits
from search_spaces.spaces.vit_sizes import vit_digits
from tests.contracts.test_spaces import narrow_mobile_former, narrow_mobilevit, narrow_vit
from tests.nas.test_latency import content

SPACES: dict[str, Space] = {
    "hybrid_digits": hybrid_digits(),
    "hybrid": hybrid(10, (64, 96)),
    "vit_digits": vit_digits(),
    "vit": narrow_vit(),
    "mobile_former": narrow_mobile_former(),
    "mobilevit": narrow_mobilevit(),
}
DIGITS = ["hybrid_digits", "vit_digits"]


def scores(file: Path | bytes, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file) if isinstance(file, Path) else file)
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_every_sample_builds_has_a_price_runs_and_is_exported(name: str, tmp_path: Path) -> None:
    """With a table whose rows all take 1 ms, a price is the number of rows."""
    space = SPACES[name]
    flat = {row.key: RowTime(1.0, 1.0, 1.0, 1.0, 0.0, 20) for row in space.rows}
    table = LatencyTable(content(space=name, rows=flat, calibration=Calibration()), tmp_path)

    @settings(
        max_examples=12 if name in DIGITS else 5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        arch: Arch = space.mutate(space.crossover(space.spread(rng), space.sample(rng), rng), rng)
        assert space.contains(arch)
        torch.manual_seed(0)
        network, images = arch.build().eval(), arch.example()
        assert sum(weight.numel() for weight in network.parameters()) == params(arch)
        assert table.predict(arch).ms == pytest.approx(len(arch.rows))
        assert macs(arch) > 0
        with torch.no_grad():
            wanted = network(images)
        torch.testing.assert_close(scores(export_for_timing(network, images), images), wanted, rtol=1e-4, atol=1e-5)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_the_files_of_the_deliverable_too(name: str, tmp_path: Path) -> None:
    """The slow exporter, on networks with pruning, moved groups and loops, with a trained supernet's kind of weights."""
    space, rng = SPACES[name], np.random.default_rng(0)
    torch.manual_seed(0)
    supernet, images = Supernet(space), torch.randn(8, 3, 64, 64)
    wanted = [arch for arch in (space.sample(rng) for _ in range(200)) if arch.locations][:2]
    wanted += [arch for arch in (space.sample(rng) for _ in range(200)) if any(s.passes > 1 for s in arch.blocks)][:1]
    for arch in wanted:
        stats = supernet.recalibrate(arch, [(images, torch.zeros(8, dtype=torch.long))])
        network, example = supernet.extract(arch, stats), arch.example()
        file = export_onnx(network, example, tmp_path / f"{arch.id}.onnx")
        with torch.no_grad():
            torch.testing.assert_close(scores(file, example), network(example), rtol=1e-4, atol=1e-5)
