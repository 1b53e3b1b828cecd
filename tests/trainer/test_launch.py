"""Ranks are started only when all is well, none outlives the others, and the culprit is named."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.system.conftest import Recipe

from weft.config.load import load
from weft.errors import CheckpointError, ConfigError, DataError, RankError
from weft.trainer import launch


class Fake:
    """A process that ends with a code once it has been polled some times."""

    def __init__(self, code: int, polls: float, log: Path, words: str) -> None:
        self.code, self.left, self.log, self.words = code, polls, log, words
        self.returncode: int | None = None
        self.killed = False

    def poll(self) -> int | None:
        self.left -= 1
        if self.returncode is None and self.left < 0:
            self.log.write_text(self.words)
            time.sleep(0.02)  # the resolution of a file's time
            self.returncode = self.code
        return self.returncode

    def kill(self) -> None:
        self.killed, self.returncode = True, -9

    def wait(self) -> int:
        assert self.returncode is not None, "waited for a process that runs"
        return self.returncode


def fakes(*ends: tuple[int, float, str]) -> tuple[list[Fake], launch.Start]:
    """Processes by their exit code, the polls until they end, and what they write then."""
    made: list[Fake] = []

    def start(arguments: Sequence[str], rank: int, log: Path) -> Fake:
        assert arguments[2:4] == [str(rank), str(len(ends))]
        assert arguments[5] == str(os.getpid())
        assert load(arguments[0]).parallel.ranks == len(ends)
        log.write_text("")
        code, polls, words = ends[rank]
        made.append(Fake(code, polls, log, words))
        return made[-1]

    return made, start


NEVER = float("inf")


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)


def test_ranks_that_all_end_well_are_a_run_that_ended_well(recipe: Recipe) -> None:
    made, start = fakes((0, 1, ""), (0, 3, ""))
    launch.train(recipe("run", "parallel.dp=2"), start=start)
    assert [process.killed for process in made] == [False, False]


@pytest.mark.parametrize(
    ("ends", "culprit"),
    [
        (((0, NEVER, ""), (1, 2, "the reason")), "rank 1 of 2 ended with exit code 1"),
        (((1, 2, "a victim"), (-9, 3, "the reason")), "rank 1 of 2 ended with signal 9"),
        (((1, 3, "a victim"), (1, 2, "the reason")), "rank 1 of 2 ended with exit code 1"),
        (((2, 2, "the reason"), (1, 2, "a victim")), "rank 0 of 2 ended with exit code 2"),
    ],
    ids=["one hangs", "one is killed", "second first", "first first"],
)
def test_the_culprit_is_named_and_the_others_are_ended(
    recipe: Recipe, ends: tuple[tuple[int, float, str], ...], culprit: str
) -> None:
    made, start = fakes(*ends)
    with pytest.raises(RankError) as raised:
        launch.train(recipe("run", "parallel.dp=2"), start=start)
    assert culprit in str(raised.value)
    assert str(raised.value).endswith("the reason")
    assert all(process.returncode is not None for process in made)


def test_a_rank_that_cannot_be_started_ends_the_others(recipe: Recipe) -> None:
    made, honest = fakes((0, NEVER, ""), (0, NEVER, ""))

    def start(arguments: Sequence[str], rank: int, log: Path) -> launch.Process:
        if rank == 1:
            raise OSError("no more processes")
        return honest(arguments, rank, log)

    with pytest.raises(OSError, match="no more processes"):
        launch.train(recipe("run", "parallel.dp=2"), start=start)
    assert made[0].killed


def never(arguments: Sequence[str], rank: int, log: Path) -> launch.Process:
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


def test_a_rank_of_torchrun_joins_only_a_world_of_the_right_size(recipe: Recipe) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "0"}
    with pytest.raises(ConfigError, match="--nproc 2: the layout has"):
        launch.join(recipe("run"), environment, "auto")


def test_a_world_of_one_joins_alone(recipe: Recipe) -> None:
    config = recipe("run", "train.steps=2", "train.eval_every=2")
    summary = launch.join(config, {"WORLD_SIZE": "1", "RANK": "0"}, "auto")
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
    start: Callable[..., launch.Process] = launch.start_process
    assert start(["recipe", "meeting"], 0, log).wait() == 7
    assert log.read_text() == "-m weft.trainer.child recipe meeting\n"
