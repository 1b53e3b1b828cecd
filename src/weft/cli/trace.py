"""`weft trace RECIPE`: one step as a timeline that Perfetto opens, as it runs here or as priced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.arguments import Overrides, Recipe
from weft.cli.settled import load_settled
from weft.compose.price import Nominal
from weft.compose.recipe import plan
from weft.compose.step import training_step
from weft.compose.timeline import Placed, place_step
from weft.config.run import RunConfig
from weft.schedule.action import is_collective
from weft.telemetry.trace import COMPUTE, SEGMENT, Span, write_trace


def trace(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="the file to write")] = Path("trace.json"),
    steps: Annotated[int, typer.Option(min=1, help="steps to run; the last is traced")] = 3,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="at nominal prices of one accelerator; runs nothing")
    ] = False,
) -> None:
    """Write one step as a trace: a row a lane of every rank. Open it in ui.perfetto.dev."""
    config = load_settled(recipe, overrides)
    if simulated:
        spans = list(_simulated_spans(config))
    else:
        from weft.bench.trace import trace_here  # torch takes seconds to import

        spans = trace_here(config, steps=steps)
    how = "nominal prices" if simulated else "measured"
    about = {"recipe": config.name, "layout": plan(config, 0).layout.name(), "times": how}
    write_trace(out, spans, about)
    seconds = max(span.stop for span in spans) - min(span.start for span in spans)
    ranks = len({span.rank for span in spans})
    print(f"{out}: {len(spans):,} spans of {ranks} rank(s), {seconds * 1e3:,.2f} ms, {how}")


def _simulated_spans(config: RunConfig) -> Iterator[Span]:
    for rank in range(config.parallel.ranks):
        for placed in place_step(training_step(plan(config, rank)), Nominal()):
            yield from _segment_spans(rank, placed)


def _segment_spans(rank: int, placed: Placed) -> Iterator[Span]:
    detail = {"segment": placed.template}

    def span(lane: str, name: str, start: float, stop: float) -> Span:
        times = {"start": placed.start + start, "stop": placed.start + stop}
        return Span(rank=rank, lane=lane, name=name, detail=detail, **times)

    line = placed.timeline
    yield span(SEGMENT, placed.template, 0.0, line.seconds)
    for bar in line.bars:
        payload = f" {bar.task.attributes['label']}" if is_collective(bar.task) else ""
        yield span(bar.lane, f"{bar.task.name}{payload}", bar.start, bar.stop)
    for start, stop in line.exposed:
        yield span(COMPUTE, "wait", start, stop)
