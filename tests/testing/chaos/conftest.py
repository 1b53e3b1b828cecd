"""The least that a check can do."""

from pathlib import Path

import pytest

from weft.testing.chaos.result import Size


@pytest.fixture
def least(tmp_path: Path) -> Size:
    return Size(folder=tmp_path, scale=0.0, seed=0, limit=2)
