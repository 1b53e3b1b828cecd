"""A bar for somebody who looks, lines for a file, nothing from the other ranks."""

import os
import pty
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Makes stdout a terminal; gives what a person has seen on it so far."""
    ours, theirs = pty.openpty()

    def seen() -> str:
        text = b""
        while select.select([ours], [], [], 0.1)[0]:
            text += os.read(ours, 1 << 16)
        return text.decode()

    with os.fdopen(theirs, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "120")
        patch.setattr(sys, "stdout", file)
        yield seen
    os.close(ours)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        shown = display(every=1, total=10, start=2)
        assert isinstance(shown, Bar)
        shown.say("step 3: checkpoint [red]run/step-00000003[/red]")
        shown.step(RECORD)
        shown.close()
        text = seen()
    for part in (
        "training",
        "5/10",
        "loss 2.500",
        "1,234 tokens/s",
        "[red]run/step-00000003[/red]",
    ):
        assert part in text


def test_a_loss_that_is_not_finite_is_said_in_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        shown = display(every=1, total=10, start=0)
        shown.step({**RECORD, "loss": None})
        shown.close()
        assert "not finite" in seen()


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
