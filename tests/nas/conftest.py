"""What several files of tests prune."""

from pathlib import Path

import pytest

from tests.nas.pruning_toy import trained_vit


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that tell the toy's classes apart, trained once."""
    return trained_vit(tmp_path_factory.mktemp("vit"))
