"""What every runtime must do, on every device and type of numbers; those that this machine lacks are skipped and say why.

A new runtime is tested once it is in `RUNTIMES`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from nas.runtimes import RUNTIMES, Session
from nas.runtimes.random_networks import fixed_images, random_network
from nas.target import Target
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, MB4D, Head, Stem
from search_spaces.errors import InputError

ARCH = Arch(16, 3, (Stem(8), MB4D(ratio=1), MB3D(heads=2, key_dim=4, value_dim=8, ratio=1), Head(3)))
BATCH = 4
SLOW = {("compiled", "cpu")}  # ten seconds and more of C++
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of the largest logit
Images = NDArray[np.float32]


def _cases() -> Iterator[Any]:
    for name, runtime in RUNTIMES.items():
        for device, dtypes in runtime.dtypes.items():
            lacking = runtime.lacks(device)
            marks = [pytest.mark.skipif(lacking is not None, reason=lacking or "")]
            marks += [pytest.mark.gpu] if device == "cuda" else []
            marks += [pytest.mark.slow, pytest.mark.timeout(300)] if (name, device) in SLOW else []
            for dtype in dtypes:
                threads = "-t1" if device == "cpu" else ""
                yield pytest.param(f"{device}-{name}-{dtype}-b{BATCH}{threads}", marks=marks)


@pytest.fixture(scope="module", params=_cases())
def target(request: pytest.FixtureRequest) -> Target:
    return Target.parse(request.param)


@pytest.fixture(scope="module")
def session(target: Target) -> Session:
    return RUNTIMES[target.runtime].from_arch(ARCH, target)


@pytest.fixture(scope="module")
def images() -> Images:
    """Two batches, the last of which is not full, of images that can be told apart."""
    contrasts = np.linspace(0.1, 3, 2 * BATCH - 1, dtype=np.float32)
    return ARCH.example(2 * BATCH - 1, seed=1).numpy() * contrasts[:, None, None, None]


def near(found: Images, wanted: Images, target: Target) -> bool:
    if target.dtype == "int8":  # its ranges are those of images of one contrast, and what is beyond is cut off
        return found.shape == wanted.shape and float(np.corrcoef(found.ravel(), wanted.ravel())[0, 1]) > 0.95
    tolerance = TOLERANCE[target.dtype] * max(1.0, float(np.abs(wanted).max()))
    return found.shape == wanted.shape and float(np.abs(found - wanted).max()) <= tolerance


def test_the_logits_are_those_of_the_same_random_weights_in_torch(
    session: Session, target: Target, images: Images
) -> None:
    network = random_network(ARCH, torch.from_numpy(fixed_images((BATCH, 3, 16, 16)))).eval()
    with torch.no_grad():
        wanted = network(torch.from_numpy(images)).numpy()
    assert np.abs(wanted[0] - wanted[-1]).max() > 0.2 * np.abs(wanted).max()
    assert near(session.run(images), wanted, target)
    assert session.image_size == 16 and session.classes == 3


def test_a_batch_that_is_not_full_changes_no_score(session: Session, target: Target, images: Images) -> None:
    whole = session.run(np.concatenate([images, images[:1]]))
    assert near(session.run(images), whole[:-1], target) and near(session.run(images[:1]), whole[:1], target)


def test_loading_it_anew_changes_no_score(session: Session, images: Images) -> None:
    before = session.run(images)
    session.close()
    assert np.array_equal(session.run(images), before), "what was closed opens by itself"
    session.reopen()
    session.reopen()
    assert np.array_equal(session.run(images), before)


def test_each_run_is_timed(session: Session, images: Images) -> None:
    session.close()
    for times in (session.time(3), session.time(5, images[:BATCH])):
        assert all(0 < ms < 10_000 for ms in times)
    assert len(session.time(3)) == 3 and len(session.time(5)) == 5


def test_what_was_prepared_is_what_the_architecture_gives(
    session: Session, target: Target, images: Images, tmp_path: Path
) -> None:
    runtime, path = RUNTIMES[target.runtime], tmp_path / "prepared"
    runtime.prepare(ARCH, target, path)
    prepared = runtime.from_prepared(path, target, ARCH)
    assert np.array_equal(prepared.run(images), session.run(images)) and not path.exists()


def test_a_file_that_it_cannot_read_is_one_line(target: Target, tmp_path: Path) -> None:
    runtime = RUNTIMES[target.runtime]
    for suffix in (".txt", *runtime.files):
        path = tmp_path / f"wrong{suffix}"
        path.write_bytes(b"nothing of the kind")
        for wrong in (path, tmp_path / f"missing{suffix}"):
            with pytest.raises(InputError) as caught:
                runtime.from_file(wrong, target)
            assert str(wrong) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_weights_gives_the_scores_of_its_network(target: Target, images: Images, tmp_path: Path) -> None:
    runtime = RUNTIMES[target.runtime]
    if ".safetensors" not in runtime.files:
        pytest.skip("it reads no weights")
    network = ARCH.build().eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors", {"arch": ARCH.to_json()})
    with torch.no_grad():
        wanted = network(torch.from_numpy(images)).numpy()
    assert near(runtime.from_file(tmp_path / "weights.safetensors", target).run(images), wanted, target)
