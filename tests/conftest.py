"""Fixtures that every test may use."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too; read where torch is imported

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run side by side on two cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache out of the tests; one folder for all of them, so that data are made once."""
    if "NAS_TEST_CACHE" in os.environ:
        os.environ["NAS_CACHE"] = os.environ["NAS_TEST_CACHE"]
    else:
        root = tmp_path_factory.getbasetemp()
        shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
        os.environ["NAS_CACHE"] = str(Path(shared) / "nas-cache")
