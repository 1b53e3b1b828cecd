"""The harness kills what it is asked to kill, says where, and sees what a process leaves."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoint.conftest import cut, make_tensors, save_alone, save_together

from weft.checkpoint.prune import list_checkpoints
from weft.config.load import build
from weft.config.run import RunConfig
from weft.errors import VerificationError
from weft.telemetry.metrics import FILE, Metrics
from weft.testing.kill import (
    Forked,
    Landing,
    Run,
    digest,
    finish,
    last_step,
    outcome,
    strike_at,
    survive,
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Eight steps of one rank, a checkpoint every second."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.txt").write_text("warp and weft, over and under\n" * (10 + number))
    tree = {
        "name": "killed",
        "model": {"preset": "tiny-mixtral", "layers": 1},
        "data": {
            "source": "text",
            "path": str(corpus),
            "sequence": 16,
            "validation_bytes": 200,
        },
        "optim": {"lr": 1e-2, "warmup_steps": 2},
        "train": {
            "steps": 8,
            "global_batch": 2,
            "micro_batch": 1,
            "eval_every": 8,
            "checkpoint_every": 2,
            "sample_bytes": 0,
            "threads": 1,
            "device": "cpu",
            "run_dir": str(tmp_path / "run"),
        },
    }
    return build(tree)


def forked(tmp_path: Path, life: Callable[[], int]) -> tuple[int, str, str]:
    """The exit code of a process, and what it wrote."""
    output, errors = tmp_path / "output", tmp_path / "errors"
    code = Forked(life, output, errors).wait()
    return code, output.read_text(), errors.read_text()


def test_a_forked_process_has_its_own_streams_and_code(tmp_path: Path) -> None:
    def life() -> int:
        print("to a person")
        print("to a log", file=sys.stderr)
        os.system("echo from a command")
        return 3

    code, output, errors = forked(tmp_path, life)
    assert code == 3
    assert set(output.splitlines()) == {"to a person", "from a command"}
    assert errors == "to a log\n"


def test_a_forked_process_that_raises_leaves_its_traceback(tmp_path: Path) -> None:
    def life() -> int:
        raise ZeroDivisionError("a bug")

    code, _, errors = forked(tmp_path, life)
    assert code == 1
    assert errors.endswith("ZeroDivisionError: a bug\n")
    assert forked(tmp_path, lambda: sys.exit(5))[0] == 5


def test_a_forked_process_can_be_killed_and_is_then_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def sleep() -> int:
        time.sleep(60)
        return 0

    process = Forked(sleep, log, log)
    assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.kill()  # of what is gone: nothing


def test_a_run_is_killed_where_it_is_aimed_at(config: RunConfig) -> None:
    run = Run(config)
    assert run.reaches(3)
    assert run.pids() == {0: run.pid}
    run.kill([0])
    assert run.wait() == -signal.SIGKILL
    assert 3 <= last_step(run.folder) < 8


def test_a_run_that_is_over_reaches_no_further_step(config: RunConfig) -> None:
    run = Run(config)
    assert not run.reaches(9)
    assert run.wait() == 0


def test_kills_are_drawn_from_the_seed_and_survived(config: RunConfig) -> None:
    expected = finish(config)
    again = config.model_copy(
        update={"train": config.train.model_copy(update={"run_dir": config.train.run_dir + "2"})}
    )
    found, landings = survive(again, kills=2, seed=1)
    assert found == expected
    assert len(landings) == 2
    assert [landing.step for landing in landings] == sorted({x.step for x in landings})


def test_a_landing_is_between_only_after_a_checkpoint_and_before_the_end() -> None:
    landing = Landing(ranks=(0,), step=5, saved=4, saving=False)
    assert landing.is_between(8)
    assert str(landing) == "ranks (0,) after step 5, inside a step; newest checkpoint 4"
    for other in (
        Landing(ranks=(0,), step=5, saved=0, saving=False),
        Landing(ranks=(0,), step=8, saved=6, saving=True),
        Landing(ranks=(0,), step=1, saved=0, saving=False),
    ):
        assert not other.is_between(8)


def test_a_run_that_fails_is_no_outcome(config: RunConfig) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(VerificationError, match=r"(?s)exit code 1, .* a bug"):
        finish(config, tamper=fail)


def test_a_step_that_is_recorded_twice_is_found(config: RunConfig) -> None:
    finish(config)
    folder = Path(config.train.run_dir)
    assert sorted(outcome(folder).losses) == list(range(1, 9))
    lines = (folder / FILE).read_text().splitlines()
    (folder / FILE).write_text("\n".join([*lines, lines[3]]) + "\n")
    with pytest.raises(VerificationError, match="expected each once, in order"):
        outcome(folder)
    Metrics(folder / FILE, {}, first_step=0).close()
    with pytest.raises(VerificationError, match="expected each once, in order"):
        outcome(folder)


def test_a_digest_is_of_the_state_and_not_of_who_wrote_it(tmp_path: Path) -> None:
    tensors = make_tensors()
    alone = save_alone(tmp_path / "alone", tensors, 1)
    save_together(tmp_path / "together", cut(tensors, 3, lambda numel: (numel // 3, 5)), 1)
    assert digest(tmp_path / "together" / alone.name) == digest(alone)
    for key in tensors:
        changed = {**tensors, key: tensors[key].clone()}
        changed[key].view(-1)[-1] += 1
        assert digest(save_alone(tmp_path / "changed", changed, 1)) != digest(alone), key


def test_a_rank_dies_at_a_fail_point_that_it_has_passed_so_often(config: RunConfig) -> None:
    held_up = config.model_copy(
        update={"train": config.train.model_copy(update={"save": "blocking"})}
    )
    assert strike_at(held_up, "before_rename", 4, 0, 1) is not None
    assert [path.name for path in list_checkpoints(Path(config.train.run_dir))] == ["step-00000002"]
    landing = strike_at(config, "after_step", 6, 0, 2)
    assert landing is not None
    assert landing.step == 7
    assert strike_at(config, "in_nothing", 0, 0, 1) is None
