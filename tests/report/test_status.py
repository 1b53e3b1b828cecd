"""A run is finished, failed, running or stalled by what its folder says; one screen says which."""

from pathlib import Path

import pytest
from tests.report.conftest import BEGAN, LAST, Folder

from weft.report.run import read_run
from weft.report.status import (
    FIRST_SECONDS,
    GRACE_SECONDS,
    PATIENCE,
    Status,
    duration,
    last_checkpoint,
    look,
    render,
)

LIMIT = GRACE_SECONDS + PATIENCE  # a line a second


def seen(path: Path, after: float, **options: float) -> Status:
    """The status so many seconds after the last line."""
    run = read_run(path)
    return look(run, "none yet", now=BEGAN + run.last_step + after, **options)


@pytest.mark.parametrize(
    ("events", "last", "after", "state", "alive"),
    [
        (("start",), 5, 1.0, "running", True),
        (("start",), 5, LIMIT - 1, "running", True),
        (("start",), 5, LIMIT + 1, "stalled", False),
        (("start", "failure"), 5, 1.0, "failed", False),
        (("start", "stop"), 5, LIMIT + 1, "stopped", True),
        (("start", "failure", "resume"), 5, 1.0, "running", True),
        (("start", "end"), LAST, 1e6, "finished", True),
        (("start",), LAST, LIMIT + 1, "stalled", False),  # died while it summed up
        ((), LAST, 1e6, "finished", True),  # written before there were events
        (("start",), 0, FIRST_SECONDS - 1, "running", True),
        (("start",), 0, FIRST_SECONDS + 1, "stalled", False),
    ],
)
def test_the_state_follows_from_events_and_age(
    folder: Folder, events: tuple[str, ...], last: int, after: float, state: str, alive: bool
) -> None:
    status = seen(folder(last=last, events=events), after)
    assert (status.state, status.alive) == (state, alive)
    assert {"failed": "FAILED: why", "stalled": "STALLED"}.get(state, state) in render(status)


def test_patience_can_be_set(folder: Folder) -> None:
    path = folder(last=5)
    assert seen(path, 10.0, stalled_after=5.0).state == "stalled"
    assert seen(path, 10.0, stalled_after=15.0).state == "running"


def test_a_clock_that_is_behind_makes_no_negative_age(folder: Folder) -> None:
    assert seen(folder(last=5), -30.0).age_seconds == 0.0


def test_time_left_is_steps_left_at_the_pace_of_the_lines(folder: Folder) -> None:
    assert seen(folder(last=5), 0.0).eta_seconds == pytest.approx(LAST - 5)


def test_one_screen_says_it_all(folder: Folder) -> None:
    text = render(seen(folder(last=6), 2.0))
    for part in (
        "6 of 12 (50%), 6.0 s left",
        "0.8333, validation 1.5000 at step 6",
        "tokens/s",
        "0 dead",
        "1 steps, the last 3",
        "2.0 s ago",
    ):
        assert part in text
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 150  # a folder's path may be long


def test_a_run_without_a_step_has_a_status(folder: Folder) -> None:
    assert "no step is finished yet" in render(seen(folder(last=0), 1.0))


def test_a_loss_that_is_not_finite_is_said(folder: Folder) -> None:
    assert "not finite" in render(seen(folder(last=2, loss=None), 1.0))


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    assert last_checkpoint([], lambda _: "") == "none yet"
    assert "as written" in last_checkpoint([tmp_path], lambda _: "")
    assert "DAMAGED: cut" in last_checkpoint([tmp_path], lambda _: "cut")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (9.96, "10.0 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_has_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text
