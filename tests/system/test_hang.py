"""A rank that stands still is found in time and named, and nothing of the run is left."""

import os
import signal
import time
from itertools import count
from pathlib import Path

from tests.system.conftest import Recipe
from tests.system.test_command import is_alive

from weft.testing.kill import Run

TIMEOUT = 2.0
LAYOUT = (
    "parallel.sp=2",
    "parallel.ep=2",
    f"train.timeout_seconds={TIMEOUT}",
    "train.steps=100000",
)


def test_a_stopped_rank_is_named_with_its_collective_and_stack(recipe: Recipe) -> None:
    run = Run(recipe("run", *LAYOUT))
    assert run.reaches(3)
    begun = time.monotonic()
    os.kill(run.pids()[1], signal.SIGSTOP)
    assert run.wait() == 1
    assert_named(run, begun, "it does not run at all: stopped")


def test_a_rank_that_sleeps_inside_a_collective_is_named(recipe: Recipe, tmp_path: Path) -> None:
    asleep, passed = tmp_path / "asleep", count()

    def sleep(rank: int, point: str) -> None:
        if rank == 1 and point == "in_qkv" and next(passed) == 40:
            asleep.touch()
            time.sleep(60)

    run = Run(recipe("run", *LAYOUT), fail_point=sleep)
    while not asleep.exists():
        assert run.poll() is None, run.output.read_text()
        time.sleep(0.01)
    begun = time.monotonic()
    assert run.wait() == 1
    assert_named(run, begun, "it runs and waits for no other rank")
    assert " in sleep\n" in run.output.read_text()
    assert "after all_to_all 'qkv', call" in run.output.read_text()


def assert_named(run: Run, begun: float, reason: str) -> None:
    assert TIMEOUT - 1 < time.monotonic() - begun < TIMEOUT + 2 + 5
    said = run.output.read_text()
    assert "rank 1 of 2 got no further" in said
    assert reason in said
    assert "the stack of rank 1, innermost first:\n    File" in said
    stacks = (run.folder / "logs" / "hang.txt").read_text()
    for rank in (0, 1):
        where = next(line for line in stacks.splitlines() if line.startswith(f"rank {rank}: "))
        assert "step" in where
        assert "call" in where
    assert not any(is_alive(pid) for pid in run.pids().values())
