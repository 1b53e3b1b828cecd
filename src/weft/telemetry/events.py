"""The events of a run: `events.jsonl`, one object each, never cut.

`metrics.jsonl` has each step once, as it was last done; this file has what happened, in order and
with the time: a run that starts, resumes, saves, fails to save, fails, is restarted or stopped, and
ends. The report, the status and a person read from it how the run went.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

FILE = "events.jsonl"

Kind = Literal[
    "start",
    "resume",
    "checkpoint",
    "no_checkpoint",
    "not_finite",
    "rollback",
    "overflow",
    "failure",
    "restart",
    "stop",
    "end",
]


def append(run_dir: Path, kind: Kind, **fields: Any) -> None:
    """Adds one event; the file is opened for it alone: any process may be the one to tell."""
    line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields})
    path = run_dir / FILE
    before = "" if _ends_whole(path) else "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{before}{line}\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The events since the run last started from nothing, but for lines that a crash has cut."""
    path = run_dir / FILE
    if not path.exists():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # the next line is whole again
        found = [event] if event["event"] == "start" else [*found, event]
    return found


def _ends_whole(path: Path) -> bool:
    """Whether the file ends with a line, not in the middle of one that a crash has cut."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
