"""A rank's exit code says who has to act; it does not outlive its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.system.conftest import Recipe

from weft.config.load import dump
from weft.errors import (
    CheckpointError,
    CommunicationError,
    ConfigError,
    DataError,
    LayoutError,
    StoppedError,
    WeftError,
)
from weft.testing.kill import Forked
from weft.trainer import child
from weft.trainer.stop import STOPPED


def run(tmp_path: Path, recipe: Recipe, rank: Callable[..., None]) -> tuple[int, str]:
    """The exit code of a child whose rank is this function, and what it said."""
    path = tmp_path / "recipe.toml"
    path.write_text(dump(recipe("run")), encoding="utf-8")

    def life() -> int:
        child.run_rank = rank
        arguments = [str(path), str(tmp_path), "0", "1", "", str(os.getppid())]
        return child.main(arguments)

    log = tmp_path / "log"
    code = Forked(life, log, log).wait()
    return code, log.read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError, 2),
        (DataError, 2),
        (LayoutError, 2),
        (CheckpointError, 1),
        (CommunicationError, 1),
    ],
)
def test_an_error_raised_on_purpose_is_one_line(
    tmp_path: Path, recipe: Recipe, error: type[WeftError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("what was found, what was expected")

    assert run(tmp_path, recipe, fail) == (code, "what was found, what was expected\n")


def test_any_other_error_is_a_traceback(tmp_path: Path, recipe: Recipe) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    code, said = run(tmp_path, recipe, fail)
    assert code == 1
    assert said.startswith("Traceback")
    assert said.endswith("ZeroDivisionError: a bug\n")


def test_a_rank_gets_the_recipe_its_place_and_its_checkpoint(
    tmp_path: Path, recipe: Recipe
) -> None:
    def check(config, place, checkpoint) -> None:
        assert config == recipe("run")
        assert (place.rank, place.world, place.meeting) == (0, 1, f"file://{tmp_path}/meeting")
        assert checkpoint is None

    assert run(tmp_path, recipe, check) == (0, "")


@pytest.mark.parametrize(
    ("end", "code", "said", "tidied"),
    [
        ("pass", 0, "", True),
        (f"raise StoppedError('enough', code={STOPPED})", STOPPED, "", True),
        ("raise CommunicationError('a rank is gone')", 1, "a rank is gone\n", False),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n", False),
    ],
    ids=["done", "stopped", "failed on purpose", "failed"],
)
def test_a_rank_that_failed_is_not_taken_down_in_order(
    tmp_path: Path, recipe: Recipe, end: str, code: int, said: str, *, tidied: bool
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(dump(recipe("run")), encoding="utf-8")
    program = f"""
import atexit, sys
from weft.errors import CommunicationError, StoppedError
from weft.trainer import child
def rank(*_): {end}
child.run_rank = rank
atexit.register(lambda: open(sys.argv[1], "w").close())
child.run(sys.argv[2:])
"""
    left = tmp_path / "tidied"
    arguments = [str(left), str(path), str(tmp_path), "0", "1", "", str(os.getpid())]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert ended.stderr.endswith(said)
    assert left.exists() is tidied


@pytest.mark.parametrize("stop_code", [75, 143])
def test_a_rank_that_stopped_says_so_by_its_code_alone(
    tmp_path: Path, recipe: Recipe, stop_code: int
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("asked to stop", code=stop_code)

    assert run(tmp_path, recipe, stop) == (stop_code, "")


def test_a_rank_writes_its_stack_when_it_is_asked_for(tmp_path: Path, recipe: Recipe) -> None:
    def ask(config, place, checkpoint) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    assert run(tmp_path, recipe, ask) == (0, "")
    assert " in ask" in (tmp_path / "stack-0").read_text()


def test_a_rank_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    def wait_for_the_end(parent: int) -> int:
        child._end_with(parent)
        time.sleep(20)
        return 0

    log = tmp_path / "log"
    began = time.monotonic()
    gone = os.getppid()  # some process that is not the parent of a child of this one
    assert Forked(partial(wait_for_the_end, gone), log, log).wait() == 1
    assert time.monotonic() - began < 10
