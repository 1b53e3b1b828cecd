"""A whole step placed on its lanes at given prices: each segment from its first task to its last.

Segments follow one another; within one the lanes are those of `schedule.render.place`. All ranks
are alike at balanced routing, so one rank's timeline is that of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from weft.compose.plan import sizes
from weft.compose.price import Nominal, price
from weft.compose.step import Step
from weft.schedule.render import Timeline, place


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One segment of the step: its template, where it starts in seconds, and what runs in it."""

    template: str
    start: float
    timeline: Timeline


def place_step(step: Step, nominal: Nominal) -> Iterator[Placed]:
    """Every segment of a step in order, at nominal prices."""
    n = sizes(step.plan)
    lines = {
        name: place(ordered, partial(price, program=ordered.program, n=n, nominal=nominal))
        for name, ordered in step.templates.items()
    }
    now = 0.0
    for instance in step.instances:
        line = lines[instance.template]
        yield Placed(template=instance.template, start=now, timeline=line)
        now += line.seconds
