"""`weft bench` refuses a wrong recipe before it measures anything."""

from pathlib import Path

import pytest
import torch

from weft.cli.bench import bench_calibrate, bench_comm, bench_step
from weft.errors import ConfigError


def test_a_wrong_recipe_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match="nearest legal key: train.steps"):
        bench_step(str(recipe_file), ["train.stepps=3"])


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        bench_step(str(tmp_path / "nothing.toml"))


def test_more_ranks_than_devices_are_refused_before_any_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="finds 1 CUDA devices"):
        bench_comm(ranks=2)


def test_a_calibration_is_refused_before_it_measures_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"H900.*H200"):
        bench_calibrate(tmp_path / "new.toml", machine="H900")
    with pytest.raises(ConfigError, match="expected a .toml file"):
        bench_calibrate(tmp_path / "nowhere" / "new.toml")
    with pytest.raises(ConfigError, match="expected a .toml file"):
        bench_calibrate(tmp_path / "new.json")
