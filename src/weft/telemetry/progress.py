"""What a person sees while a run goes on: a bar on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display(Protocol):
    """Where a run reports to."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def step(self, record: Mapping[str, Any]) -> None:
        """The record of one step."""
        ...

    def close(self) -> None:
        """No more is coming."""
        ...


class Silent:
    """The display of every rank but the first."""

    def say(self, text: str) -> None:
        """Says nothing."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Has nothing to close."""


class Lines:
    """One line every few steps."""

    def __init__(self, *, every: int, total: int) -> None:
        self.every = every
        self.total = total

    def say(self, text: str) -> None:
        """Prints one line at once."""
        print(text, flush=True)

    def step(self, record: Mapping[str, Any]) -> None:
        """Prints the steps that are due, and the last."""
        if record["step"] % self.every == 0 or record["step"] == self.total:
            self.say(summary(record, self.total))

    def close(self) -> None:
        """Has nothing to close."""


class Bar:
    """A progress bar with the latest figures beside it."""

    def __init__(self, *, total: int, start: int) -> None:
        self.console = Console(highlight=False)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("", total=total, completed=start, figures="")
        self.progress.start()

    def say(self, text: str) -> None:
        """Prints one line above the bar."""
        self.progress.console.print(text, markup=False)

    def step(self, record: Mapping[str, Any]) -> None:
        """Moves the bar."""
        figures = f"loss {_figure(record['loss'], 3)}  {record['tokens_per_s']:,.0f} tokens/s"
        self.progress.update(self.task, completed=record["step"], figures=figures)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self.progress.stop()


def display(*, every: int, total: int, start: int) -> Display:
    """A bar if somebody is looking, else lines."""
    return Bar(total=total, start=start) if sys.stdout.isatty() else Lines(every=every, total=total)


def summary(record: Mapping[str, Any], total: int) -> str:
    """One step in one line.

    Example:
        >>> summary({"step": 5, "loss": 2.5, "lr": 0.001, "grad_norm": 1.25, "tokens_per_s": 1234.5,
        ...          "expert_load_max": 1.5, "expert_load_min": 0.5, "dead_experts": 0, "skipped":
        False}, 10) 'step  5/10  loss 2.5000  lr 1.0e-03  grad norm 1.250  1,234 tokens/s  expert
        load 0.50-1.50  dead 0'
    """
    width = len(str(total))
    parts = [
        f"step {record['step']:>{width}}/{total}",
        f"loss {_figure(record['loss'], 4)}",
        f"lr {record['lr']:.1e}",
        f"grad norm {_figure(record['grad_norm'], 3)}",
        f"{record['tokens_per_s']:,.0f} tokens/s",
        f"expert load {record['expert_load_min']:.2f}-{record['expert_load_max']:.2f}",
        f"dead {record['dead_experts']}",
    ]
    if record["skipped"]:
        finite = record["loss"] is not None and record["grad_norm"] is not None
        why = "far above those before" if finite else "not finite"
        parts.append(f"SKIPPED: loss or gradient {why}")
    return "  ".join(parts)


def _figure(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"
