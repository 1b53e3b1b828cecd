"""Where a run stands, in one screen: read from its folder alone, so from any machine that has it.

    finished   its last event says so, or all its steps are written
    stopped    its last event is that it was asked to stop, and did
    failed     its last event is an error
    running    a line was written lately
    stalled    none was, for longer than five of its longest pauses and a minute

The longest pause is between two neighbouring lines of the last hundred: an evaluation or a
checkpoint lies in it. Before the second line the limit is as long as ranks wait for each other.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from weft.report.run import Record, Run
from weft.telemetry import events, metrics

RECENT = 100  # lines: enough to have an evaluation in them, few enough to forget a slow start
PATIENCE = 5.0  # longest pauses; a checkpoint on a busy disk takes a few times its usual time
GRACE_SECONDS = 60.0  # clocks of two machines differ, and shared folders show files late
FIRST_SECONDS = 600.0  # trainer.hang.FLOOR_SECONDS: a first step may compile kernels

State = Literal["finished", "stopped", "failed", "running", "stalled"]
Verify = Callable[[Path], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Where a run stands at one moment."""

    run: Run
    state: State
    age_seconds: float
    limit_seconds: float
    step_seconds: float | None
    checkpoint: str

    @property
    def alive(self) -> bool:
        """Whether nobody has to look after it."""
        return self.state in ("finished", "stopped", "running")

    @property
    def eta_seconds(self) -> float | None:
        """Until the last step at the recent pace, evaluations and checkpoints included."""
        total = self.run.total_steps
        if self.step_seconds is None or total is None or self.state in ("finished", "stopped"):
            return None
        return (total - self.run.last_step) * self.step_seconds


def look(run: Run, checkpoint: str, *, now: float, stalled_after: float | None = None) -> Status:
    """The status of a run at a time; `checkpoint` is what was found of its last one."""
    age = max(now - _last_written(run), 0.0)
    limit = stalled_after if stalled_after is not None else _limit(run.steps)
    return Status(
        run=run,
        state=_state(run, age, limit),
        age_seconds=age,
        limit_seconds=limit,
        step_seconds=_step_seconds(run.steps),
        checkpoint=checkpoint,
    )


def _last_written(run: Run) -> float:
    """When the newest line was written: by the writer's clock, for older runs by its file's."""
    last = [
        line["time"] for lines in (run.steps, run.events) for line in lines[-1:] if "time" in line
    ]
    if last:
        return max(last)
    files = (run.folder / name for name in (metrics.FILE, events.FILE))
    return max(file.stat().st_mtime for file in files if file.exists())


def _limit(steps: Sequence[Record]) -> float:
    pauses = _pauses(steps)
    return GRACE_SECONDS + PATIENCE * max(pauses) if pauses else FIRST_SECONDS


def _pauses(steps: Sequence[Record]) -> list[float]:
    """Seconds between neighbouring recent lines; a resumption lies in none of them."""
    recent = [record for record in steps[-RECENT:] if "time" in record]
    return [after["time"] - before["time"] for before, after in pairwise(recent)]


def _step_seconds(steps: Sequence[Record]) -> float | None:
    pauses = _pauses(steps)
    if pauses:
        return statistics.fmean(pauses)
    return statistics.fmean(r["step_ms"] for r in steps[-RECENT:]) / 1e3 if steps else None


def _state(run: Run, age: float, limit: float) -> State:
    last = run.events[-1]["event"] if run.events else ""
    if last == "failure":
        return "failed"
    if last == "stop":
        return "stopped"
    if last == "end" or (not last and run.last_step == run.total_steps):
        return "finished"
    return "running" if age <= limit else "stalled"


def render(status: Status) -> str:
    """One screen: a line a fact, the state first."""
    run = status.run
    rows = [
        ("run", f"{run.name}  ({run.folder})"),
        ("state", _state_line(status)),
        ("step", _step_line(status)),
        *_figures(run),
        ("checkpoint", status.checkpoint),
        ("skipped", _skipped_line(run)),
        ("last line", _last_line(status)),
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)


def _state_line(status: Status) -> str:
    if status.state == "failed":
        return f"FAILED: {status.run.events[-1]['error']}"
    if status.state == "stalled":
        return f"STALLED: nothing written for {duration(status.age_seconds)}"
    return status.state


def _step_line(status: Status) -> str:
    run, eta = status.run, status.eta_seconds
    done = f"{run.last_step:,}"
    if run.total_steps:
        done += f" of {run.total_steps:,} ({run.last_step / run.total_steps:.0%})"
    return done if eta is None else f"{done}, {duration(eta)} left at this pace"


def _figures(run: Run) -> list[tuple[str, str]]:
    if not run.steps:
        return [("loss", "no step is finished yet")]
    recent, last = run.steps[-RECENT:], run.steps[-1]
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
    if run.validations:
        best = run.validations[-1]
        loss += f", validation {best['validation_loss']:.4f} at step {best['step']:,}"
    rate = statistics.median(record["tokens_per_s"] for record in recent)
    dead = last["dead_experts"]
    load = f"{last['expert_load_min']:.2f} to {last['expert_load_max']:.2f} of even, {dead} dead"
    milliseconds = statistics.median(record["step_ms"] for record in recent)
    pace = f"{rate:,.0f} tokens/s, {duration(milliseconds / 1e3)} a step"
    return [("loss", loss), ("rate", pace), ("experts", load)]


def _skipped_line(run: Run) -> str:
    steps = run.skipped
    if not steps:
        return "no step"
    return f"{len(steps)} steps, the last {steps[-1]:,}"


def _last_line(status: Status) -> str:
    age = f"{duration(status.age_seconds)} ago"
    return (
        age
        if status.state != "running"
        else f"{age}; stalled after {duration(status.limit_seconds)}"
    )


def duration(seconds: float) -> str:
    """A time in the two units that matter.

    Example:
        >>> duration(0.0042), duration(3.2), duration(125), duration(7320), duration(200000)
        ('4 ms', '3.2 s', '2 min 5 s', '2 h 2 min', '2 d 7 h')
    """
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def last_checkpoint(folders: Sequence[Path], verify: Verify) -> str:
    """What is said of the newest checkpoint: its folder and what `verify` finds, '' where whole."""
    if not folders:
        return "none yet"
    newest = folders[0]
    fault = verify(newest)
    age = duration(max(time.time() - newest.stat().st_mtime, 0.0))
    found = f"DAMAGED: {fault}" if fault else "manifest and sizes are as written"
    return f"{newest.name}, {age} old; {found}"
