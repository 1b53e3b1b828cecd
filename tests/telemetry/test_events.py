"""What happened stays written, and a line that a crash has cut takes no other with it."""

from pathlib import Path

import pytest

from weft.telemetry import events


def kinds(run_dir: Path) -> list[str]:
    return [event["event"] for event in events.read(run_dir)]


def test_events_are_read_in_order_with_their_fields(tmp_path: Path) -> None:
    events.append(tmp_path, "start", step=0)
    events.append(tmp_path, "checkpoint", step=4, folder="step-00000004", seconds=0.5)
    first, second = events.read(tmp_path)
    assert first["time"] <= second["time"]
    assert (second["event"], second["step"], second["folder"]) == ("checkpoint", 4, "step-00000004")


def test_a_run_that_starts_anew_forgets_and_one_that_resumes_does_not(tmp_path: Path) -> None:
    for kind in ("start", "failure", "start", "checkpoint", "failure", "resume", "end"):
        events.append(tmp_path, kind, step=0)
    assert kinds(tmp_path) == ["start", "checkpoint", "failure", "resume", "end"]


def test_a_run_without_the_file_has_no_events(tmp_path: Path) -> None:
    assert events.read(tmp_path) == []


@pytest.mark.parametrize("rest", [b'{"time": 1, "ev', b"\xff\x00"])
def test_a_line_cut_short_loses_only_itself(tmp_path: Path, rest: bytes) -> None:
    events.append(tmp_path, "start", step=0)
    with (tmp_path / events.FILE).open("ab") as file:
        file.write(rest)
    assert kinds(tmp_path) == ["start"]
    events.append(tmp_path, "resume", step=0)
    assert kinds(tmp_path) == ["start", "resume"]
