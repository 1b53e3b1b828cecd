"""A trace is JSON that Perfetto reads: rows named and in order, times in microseconds from zero."""

import json
from pathlib import Path

from weft.telemetry.trace import COMPUTE, SEGMENT, Span, write_trace


def span(rank: int, lane: str, start: float, stop: float) -> Span:
    return Span(rank=rank, lane=lane, name="work", start=start, stop=stop, detail={"segment": "s"})


def written(path: Path, *spans: Span) -> list[dict]:
    write_trace(path, spans, {"recipe": "tiny"})
    return json.loads(path.read_text())["traceEvents"]


def test_a_rank_is_a_process_and_a_lane_is_a_row_in_a_fixed_order(tmp_path: Path) -> None:
    lanes = ("comm sp", COMPUTE, "comm ep", SEGMENT)
    spans = [span(rank, lane, 1.0, 2.0) for rank in (1, 0) for lane in lanes]
    found = written(tmp_path / "trace.json", *spans)
    for rank in (0, 1):
        names = {
            e["tid"]: e["args"]["name"]
            for e in found
            if e["name"] == "thread_name" and e["pid"] == rank
        }
        assert [names[row] for row in sorted(names)] == [SEGMENT, COMPUTE, "comm ep", "comm sp"]


def test_times_are_microseconds_from_the_earliest_span(tmp_path: Path) -> None:
    found = written(
        tmp_path / "trace.json", span(0, COMPUTE, 5.0, 5.5), span(1, COMPUTE, 4.0, 4.25)
    )
    complete = {e["pid"]: (e["ts"], e["dur"]) for e in found if e["ph"] == "X"}
    assert complete == {0: (1e6, 0.5e6), 1: (0.0, 0.25e6)}


def test_nothing_to_show_is_still_a_trace(tmp_path: Path) -> None:
    assert written(tmp_path / "trace.json") == []
