"""No rank outlives the others, the culprit is named, a failed run is started again as agreed."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.system.conftest import Recipe

from weft.config.load import load
from weft.errors import RankError, StoppedError
from weft.telemetry import events
from weft.trainer import hang, supervisor
from weft.trainer.pulse import Pulse
from weft.trainer.stop import STOPPED


class Fake:
    """A process that ends with a code once it has been polled some times."""

    pid = 0

    def __init__(self, code: int, polls: float, log: Path, words: str) -> None:
        self.code, self.left, self.log, self.words = code, polls, log, words
        self.heard: list[int] = []
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

    def send_signal(self, sig: int) -> None:
        self.heard.append(sig)
        if sig == signal.SIGTERM:
            self.code, self.left = STOPPED, 2

    def wait(self) -> int:
        assert self.returncode is not None, "waited for a process that runs"
        return self.returncode


def fakes(*ends: tuple[int, float, str]) -> tuple[list[Fake], supervisor.Start]:
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
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "STACK_SECONDS", 0.0)


def supervise(recipe: Recipe, start: supervisor.Start, *overrides: str) -> Path:
    config = recipe("run", "parallel.dp=2", *overrides)
    supervisor.make_run_dir(config)
    supervisor.supervise(config, None, lambda: None, start)
    return Path(config.train.run_dir)


def test_ranks_that_all_end_well_are_a_run_that_ended_well(recipe: Recipe) -> None:
    made, start = fakes((0, 1, ""), (0, 3, ""))
    supervise(recipe, start)
    assert [process.killed for process in made] == [False, False]


@pytest.mark.parametrize(
    ("ends", "culprit"),
    [
        (((0, NEVER, ""), (1, 2, "the reason")), "rank 1 of 2 ended with exit code 1"),
        (((1, 2, "a victim"), (-9, 3, "the reason")), "rank 1 of 2 ended with signal 9"),
        (((1, 3, "a victim"), (1, 2, "the reason")), "rank 1 of 2 ended with exit code 1"),
        (((2, 2, "the reason"), (1, 2, "a victim")), "rank 0 of 2 ended with exit code 2"),
        (((-6, 2, "a victim"), (-9, 3, "the reason")), "rank 1 of 2 ended with signal 9"),
        (((-6, 3, "a victim"), (1, 2, "the reason")), "rank 1 of 2 ended with exit code 1"),
        (((-6, 2, "the reason"), (1, 3, "a victim")), "rank 0 of 2 ended with signal 6"),
        (((-11, 3, "a victim"), (-9, 2, "the reason")), "rank 1 of 2 ended with signal 9"),
    ],
    ids=[
        "one hangs",
        "one is killed",
        "second first",
        "first first",
        "killed, the other aborts",
        "failed, the other aborts",
        "aborted, the other fails",
        "two are killed",
    ],
)
def test_the_culprit_is_named_and_the_others_are_ended(
    recipe: Recipe, ends: tuple[tuple[int, float, str], ...], culprit: str
) -> None:
    made, start = fakes(*ends)
    with pytest.raises(RankError) as raised:
        supervise(recipe, start)
    assert culprit in str(raised.value)
    assert str(raised.value).endswith("the reason")
    assert all(process.returncode is not None for process in made)


def test_a_rank_that_cannot_be_started_ends_the_others(recipe: Recipe) -> None:
    made, honest = fakes((0, NEVER, ""), (0, NEVER, ""))

    def start(arguments: Sequence[str], rank: int, log: Path) -> supervisor.Process:
        if rank == 1:
            raise OSError("no more processes")
        return honest(arguments, rank, log)

    with pytest.raises(OSError, match="no more processes"):
        supervise(recipe, start)
    assert made[0].killed


# ---- restarts ----


def in_turn(*starts: supervisor.Start) -> supervisor.Start:
    """Another start of two ranks each time."""
    calls = iter(start for start in starts for _ in range(2))

    def begin(arguments: Sequence[str], rank: int, log: Path) -> supervisor.Process:
        return next(calls)(arguments, rank, log)

    return begin


def test_a_failed_run_is_started_again_as_often_as_agreed(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, failing = fakes((0, NEVER, ""), (1, 2, "the reason"))
    _, working = fakes((0, 1, ""), (0, 1, ""))
    supervise(recipe, in_turn(failing, working), "train.restarts=1")
    assert "restart 1 of 1, from the beginning" in capsys.readouterr().out
    told = [event["event"] for event in events.read(tmp_path / "run")]
    assert told == ["failure", "restart"]


def test_a_restart_too_many_is_refused(recipe: Recipe) -> None:
    failing = [fakes((0, NEVER, ""), (1, 2, "the reason"))[1] for _ in range(2)]
    with pytest.raises(RankError, match=r"(?s)the reason.*train.restarts = 1"):
        supervise(recipe, in_turn(*failing), "train.restarts=1")


def test_a_loop_of_crashes_ends(recipe: Recipe) -> None:
    failing = [fakes((0, NEVER, ""), (1, 2, "the reason"))[1] for _ in range(4)]
    with pytest.raises(RankError, match="step 0 failed 3 times in a row"):
        supervise(recipe, in_turn(*failing), "train.restarts=100")


def test_what_is_refused_is_not_tried_again(recipe: Recipe) -> None:
    _, refusing = fakes((0, NEVER, ""), (2, 2, "no such corpus"))
    with pytest.raises(RankError, match="no such corpus"):
        supervise(recipe, in_turn(refusing), "train.restarts=5")


# ---- being asked to stop ----


def asking(start: supervisor.Start, times: int) -> supervisor.Start:
    """Asks this process to end once its last rank has been started."""

    def begin(arguments: Sequence[str], rank: int, log: Path) -> supervisor.Process:
        made = start(arguments, rank, log)
        for _ in range(times if rank == 1 else 0):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # two signals at once may be one
        return made

    return begin


def test_asked_to_stop_it_tells_every_rank_once(recipe: Recipe) -> None:
    made, start = fakes((0, NEVER, ""), (0, NEVER, ""))
    with pytest.raises(StoppedError, match="go on") as stopped:
        supervise(recipe, asking(start, 1))
    assert stopped.value.code == STOPPED
    assert [process.heard for process in made] == [[signal.SIGTERM]] * 2
    assert not any(process.killed for process in made)


def test_asked_twice_it_ends_every_rank(recipe: Recipe) -> None:
    made, start = fakes((0, NEVER, ""), (0, NEVER, ""))
    with pytest.raises(StoppedError) as stopped:
        supervise(recipe, asking(start, 2))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert all(process.killed for process in made)


# ---- standing still ----


def test_a_rank_that_stands_still_is_named_and_all_are_ended(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "FLOOR_SECONDS", {})
    made, start = fakes((0, NEVER, ""), (0, NEVER, ""))

    def begin(arguments: Sequence[str], rank: int, log: Path) -> supervisor.Process:
        Pulse(Path(arguments[1], f"pulse-{rank}")).enter("step", 7)
        return start(arguments, rank, log)

    with pytest.raises(RankError, match="step 7") as raised:
        supervise(recipe, begin, "train.timeout_seconds=0.2")
    assert "got no further" in str(raised.value)
    assert all(process.killed for process in made)
    assert made[0].heard == [signal.SIGUSR1, signal.SIGCONT]
    assert "rank 1: step 7" in (tmp_path / "run" / "logs" / "hang.txt").read_text()
