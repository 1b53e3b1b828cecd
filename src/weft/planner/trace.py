"""A simulated step as spans of a trace, in the form of a measured one: a row a lane of each stage.

Pieces of the pipeline stand where `simulate` placed them; inside a piece the segments follow one
another and their bars lie on their lanes. Micro-batches that the pipeline left out of its middle
are not in it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.compose.first import first_of
from weft.errors import ConfigError
from weft.planner.play import COMPUTE
from weft.planner.simulate import Segment, Simulated
from weft.schedule.action import is_collective
from weft.telemetry.trace import SEGMENT, Span


def spans(done: Simulated) -> Iterator[Span]:
    """Every segment, task and wait; the rank of a span is its stage."""
    for slot in done.run.slots:
        now = slot.start
        names = done.pieces[slot.rank, slot.work.kind, slot.work.chunk]
        for name in names if slot.work.micro_batch else [first_of(n, done.segments) for n in names]:
            segment = done.segments[name]
            piece = f"{name} {slot.work}"
            yield from _segment(slot.rank, piece, name, now, segment)
            now += segment.seconds


def read_trace(path: Path) -> list[Span]:
    """The spans of a trace file, measured or simulated, of every rank.

    Raises:
        ConfigError: the file is no trace.
    """
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no trace ({error!r}); weft trace RECIPE --out {path} writes one"
        ) from None
    return [
        Span(
            rank=event["pid"],
            lane=event["cat"],
            name=event["name"],
            start=event["ts"] * 1e-6,
            stop=(event["ts"] + event["dur"]) * 1e-6,
            detail=event["args"],
        )
        for event in events
        if event["ph"] == "X"
    ]


def _segment(rank: int, title: str, name: str, at: float, segment: Segment) -> Iterator[Span]:
    detail = {"segment": name}

    def span(lane: str, text: str, start: float, stop: float) -> Span:
        return Span(
            rank=rank, lane=lane, name=text, start=at + start, stop=at + stop, detail=detail
        )

    yield span(SEGMENT, title, 0.0, segment.seconds)
    for bar in segment.played.bars:
        if bar.stop <= bar.start:
            continue
        payload = f" {bar.task.attributes['label']}" if is_collective(bar.task) else ""
        yield span(bar.lane, f"{bar.task.name}{payload}", bar.start, bar.stop)
    for gap in segment.played.gaps:
        yield span(COMPUTE, f"wait {gap.cause}", gap.start, gap.stop)
