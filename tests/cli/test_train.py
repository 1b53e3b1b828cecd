"""`weft train` starts all ranks itself, or is the one rank that torchrun describes."""

from pathlib import Path

import pytest

from weft.cli.train import train
from weft.errors import ConfigError
from weft.trainer import launch


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    found: list[tuple] = []
    monkeypatch.setattr(
        launch, "train", lambda config, *, nproc, resume: found.append((config, nproc, resume))
    )
    monkeypatch.setattr(launch, "join", lambda *given: found.append(("join", given[2])))
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_overrides_processes_and_resumption_are_passed_on(
    recipe_file: Path, calls: list[tuple]
) -> None:
    train(str(recipe_file), nproc=2, overrides=["parallel.dp=2"], resume="never")
    ((config, nproc, resume),) = calls
    assert (config.parallel.dp, nproc, resume) == (2, 2, "never")


def test_by_default_a_run_resumes_with_as_many_ranks_as_its_layout(
    recipe_file: Path, calls: list[tuple]
) -> None:
    train(str(recipe_file))
    ((_, nproc, resume),) = calls
    assert (nproc, resume) == (None, "auto")


def test_a_rank_of_torchrun_joins(
    recipe_file: Path, calls: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(str(recipe_file))
    assert calls.pop()[1] is None  # a world without a rank is nobody's rank
    monkeypatch.setenv("RANK", "0")
    train(str(recipe_file))
    assert calls == [("join", "auto")]


def test_a_wrong_recipe_starts_nothing(recipe_file: Path, calls: list[tuple]) -> None:
    with pytest.raises(ConfigError, match="nearest legal key: train.steps"):
        train(str(recipe_file), overrides=["train.stepps=3"])
    assert calls == []
