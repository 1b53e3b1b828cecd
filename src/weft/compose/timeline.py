"""A whole step placed on its lanes at given prices: each segment from its first task to its last.

Segments follow one another; within one the lanes are those of `schedule.render.place`. What a
segment leaves in flight arrives in a later one, and a lane that is still busy at the edge stays so.
All ranks are alike at balanced routing, so one rank's timeline is that of all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from weft.compose.instance import Instance
from weft.compose.plan import sizes
from weft.compose.price import Nominal, price
from weft.compose.step import Step
from weft.schedule.render import IDLE, Price, Timeline, Traffic, place


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One segment of the step: its template, where it starts in seconds, and what runs in it."""

    template: str
    start: float
    timeline: Timeline


def place_step(step: Step, nominal: Nominal) -> Iterator[Placed]:
    """Every segment of a step in order, at nominal prices."""
    n = sizes(step.plan)
    prices: dict[str, Price] = {
        name: partial(price, program=ordered.program, n=n, nominal=nominal)
        for name, ordered in step.templates.items()
    }
    alone: dict[str, Timeline] = {}  # of segments that meet no traffic
    now, lanes = 0.0, dict[str, float]()  # until when each lane is busy
    flying: dict[str, float] = {}  # when each key in flight arrives
    for instance in step.instances:
        ordered = step.templates[instance.template]
        entering = _entering(instance, flying, lanes, now)
        if entering == IDLE and instance.template in alone:
            line = alone[instance.template]
        else:
            line = place(ordered, prices[instance.template], entering)
        if entering == IDLE:
            alone[instance.template] = line
        yield Placed(template=instance.template, start=now, timeline=line)
        now += line.seconds
        flying.update({instance.writes[v]: now + left for v, left in line.leaving.values.items()})
        lanes = {lane: now + left for lane, left in line.leaving.lanes.items()}


def _entering(
    instance: Instance, flying: dict[str, float], lanes: Mapping[str, float], now: float
) -> Traffic:
    """What a segment finds on its way when it begins; a key is joined once."""
    arriving = {v: flying.pop(key) - now for v, key in instance.reads.items() if key in flying}
    return Traffic(
        values=arriving, lanes={lane: stop - now for lane, stop in lanes.items() if stop > now}
    )
