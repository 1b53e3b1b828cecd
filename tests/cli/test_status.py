"""`weft status` reads a folder, says where the run stands, and ends with 0 or 1."""

import time

import pytest
import typer
from tests.report.conftest import Folder, folder

from weft.cli.status import status

__all__ = ["folder"]


def test_a_finished_run_is_well(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    status(folder(events=("start", "end")))
    assert "finished" in capsys.readouterr().out


def test_a_run_that_goes_on_is_well(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    status(folder(last=5, time=time.time()))
    assert "running" in capsys.readouterr().out


@pytest.mark.parametrize("events", [("start",), ("start", "failure")])
def test_a_run_that_stands_still_is_not(
    folder: Folder, events: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        status(folder(last=5, events=events))
    assert end.value.exit_code == 1
    assert "ED" in capsys.readouterr().out  # STALLED or FAILED


def test_a_half_written_checkpoint_is_named(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(events=("start", "end"))
    (path / "step-00000012").mkdir()
    status(path)
    assert "step-00000012" in (shown := capsys.readouterr().out)
    assert "DAMAGED" in shown
