"""Ranks are started only when all is well: what can be refused is refused before the first one."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.system.conftest import Recipe

from weft.config.run import RunConfig
from weft.errors import CheckpointError, ConfigError, DataError
from weft.trainer import launch, lock
from weft.trainer.cluster import Member
from weft.trainer.supervisor import Process


def never(arguments: Sequence[str], rank: int, log: Path) -> Process:
    raise AssertionError("a process was started")


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("data.path=/nowhere",), DataError),
        (("model.vocab=256",), ConfigError),
        (("train.device=cuda",), ConfigError),
        (("train.run_dir=/proc/run",), ConfigError),
    ],
)
def test_nothing_is_started_for_a_run_that_cannot_be(
    recipe: Recipe, overrides: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        launch.train(recipe("run", "parallel.dp=2", *overrides), start=never)


def test_nothing_is_started_from_a_checkpoint_that_is_none(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run" / "step-00000004").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        launch.train(recipe("run", "parallel.dp=2"), start=never)


def test_nothing_is_started_where_another_run_is_under_way(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "run").mkdir()
    with (
        lock.hold(tmp_path / "run"),
        pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"),
    ):
        launch.train(recipe("run", "parallel.dp=2"), start=never)


@pytest.mark.parametrize(
    ("overrides", "nproc", "remedy"),
    [
        (("parallel.sp=2",), 4, "try --nproc 2, or --set parallel.dp=2"),
        (("parallel.sp=2",), 3, "try --nproc 2"),
        (("parallel.sp=2",), 1, "try --nproc 2"),
        ((), 2, "try --nproc 1, or --set parallel.dp=2"),
    ],
)
def test_a_wrong_number_of_processes_is_told_what_would_fit(
    recipe: Recipe, overrides: tuple[str, ...], nproc: int, remedy: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        launch.check_processes(recipe("run", *overrides), nproc)
    assert str(raised.value).endswith(remedy)


def member(world: int) -> Member:
    return Member(rank=0, world=world, local_rank=0, neighbours=1, meeting="env://")


def test_a_rank_joins_only_a_world_of_the_right_size(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="--nproc 2: the layout has"):
        launch.join(recipe("run"), member(2), "auto")


def test_a_world_of_one_joins_alone(recipe: Recipe) -> None:
    config = recipe("run", "train.steps=2", "train.eval_every=2")
    summary = launch.join(config, member(1), "auto")
    assert summary is not None
    assert summary.last["step"] == 2


def test_a_started_process_writes_its_errors_to_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@" >&2\nexit 7\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    log = tmp_path / "rank-0.log"
    start: Callable[..., Process] = launch.start_process
    assert start(["recipe", "meeting"], 0, log).wait() == 7
    assert log.read_text() == "-m weft.trainer.child recipe meeting\n"


def test_a_run_that_is_done_leaves_no_remains_of_the_crash_before(few_steps: RunConfig) -> None:
    launch.train(few_steps)
    remains = Path(few_steps.train.run_dir) / "step-00000001.pruned"
    remains.mkdir()
    launch.train(few_steps)
    assert not remains.exists()
