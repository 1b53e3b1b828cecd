"""`weft bench` refuses a wrong recipe before it measures anything."""

from pathlib import Path

import pytest

from weft.cli.bench import bench_step
from weft.errors import ConfigError


def test_a_wrong_recipe_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="nearest legal key: train.steps"):
        bench_step(str(recipe_file), ["train.stepps=3"])


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        bench_step(str(tmp_path / "nothing.toml"))
