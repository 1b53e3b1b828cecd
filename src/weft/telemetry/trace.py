"""A trace as Chrome and Perfetto read it: a process for each rank, a row for each lane.

Open the file in ui.perfetto.dev or chrome://tracing. The format is the JSON array of "complete"
events ("ph": "X") of the Trace Event Format, times in microseconds from the earliest span.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEGMENT, COMPUTE = "segment", "compute"
_MICROSECONDS = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that took from one time to another on one lane of one rank, in seconds."""

    rank: int
    lane: str
    name: str
    start: float
    stop: float
    detail: Mapping[str, str]


def write_trace(path: Path, spans: Sequence[Span], about: Mapping[str, str]) -> None:
    """Writes one file with everything; `about` says what was traced."""
    origin = min((span.start for span in spans), default=0.0)
    rows = _rows(spans)
    events = [*_names(rows), *(_event(span, rows, origin) for span in spans)]
    trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about)}
    path.write_text(json.dumps(trace), encoding="utf-8")


def _rows(spans: Sequence[Span]) -> dict[tuple[int, str], int]:
    """The row of each rank's lanes: segments, compute, then communication by name."""
    first = {SEGMENT: 0, COMPUTE: 1}
    lanes = sorted({span.lane for span in spans}, key=lambda lane: (first.get(lane, 2), lane))
    ranks = sorted({span.rank for span in spans})
    return {(rank, lane): row for rank in ranks for row, lane in enumerate(lanes)}


def _names(rows: Mapping[tuple[int, str], int]) -> Iterator[dict[str, Any]]:
    for rank in dict.fromkeys(rank for rank, _ in rows):
        yield _label("process_name", rank, 0, {"name": f"rank {rank}"})
        yield _label("process_sort_index", rank, 0, {"sort_index": rank})
    for (rank, lane), row in rows.items():
        yield _label("thread_name", rank, row, {"name": lane})
        yield _label("thread_sort_index", rank, row, {"sort_index": row})


def _label(name: str, rank: int, row: int, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": row, "args": dict(value)}


def _event(span: Span, rows: Mapping[tuple[int, str], int], origin: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.lane,
        "pid": span.rank,
        "tid": rows[span.rank, span.lane],
        "ts": round((span.start - origin) * _MICROSECONDS, 3),
        "dur": round((span.stop - span.start) * _MICROSECONDS, 3),
        "args": dict(span.detail),
    }
