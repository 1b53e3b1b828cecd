"""A bar for somebody who looks, lines for a file, nothing from the other ranks."""

import os
import pty
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from weft.telemetry.progress import Bar, Lines, Silent, display, summary

RECORD = {
    "step": 5,
    "loss": 2.5,
    "lr": 0.001,
    "grad_norm": 1.25,
    "tokens_per_s": 1234.5,
    "expert_load_max": 1.5,
    "expert_load_min": 0.5,
    "dead_experts": 0,
    "skipped": False,
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Makes stdout a terminal; gives the end that a person looks at."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    file: IO[str] = os.fdopen(theirs, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", file)
    yield ours
    file.close()
    os.close(ours)


def test_a_terminal_gets_a_bar(terminal: int) -> None:
    shown = display(every=1, total=10, start=2)
    assert isinstance(shown, Bar)
    shown.say("step 3: checkpoint [red]run/step-00000003[/red]")
    shown.step(RECORD)
    shown.close()
    text = os.read(terminal, 1 << 16).decode()
    for part in (
        "training",
        "5/10",
        "loss 2.500",
        "1,234 tokens/s",
        "[red]run/step-00000003[/red]",
    ):
        assert part in text


def test_a_loss_that_is_not_finite_is_said_in_the_bar(terminal: int) -> None:
    shown = display(every=1, total=10, start=0)
    shown.step({**RECORD, "loss": None})
    shown.close()
    assert "not finite" in os.read(terminal, 1 << 16).decode()


def test_a_file_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display(every=2, total=7, start=0)
    assert isinstance(shown, Lines)
    for step in range(1, 8):
        shown.step({**RECORD, "step": step})
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2/7", "4/7", "6/7", "7/7"]


def test_the_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Silent()
    shown.say("something")
    shown.step(RECORD)
    shown.close()
    assert capsys.readouterr().out == ""


def test_a_skipped_step_is_said() -> None:
    text = summary({**RECORD, "loss": None, "grad_norm": None, "skipped": True}, 10)
    assert "loss not finite" in text
    assert "grad norm not finite" in text
    assert text.endswith("SKIPPED: loss or gradient not finite")
    assert "SKIPPED" not in summary(RECORD, 10)
