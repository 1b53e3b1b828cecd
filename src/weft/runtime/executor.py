"""The executor: a step bound once into flat lists of closures, then run as they stand.

A template is bound once; an instance adds a frame with its static tensors already in place.
`advance` is the same run as a generator that yields where a collective is not complete, so that one
loop can take turns over many ranks. What a segment leaves in flight travels as its handle in the
environment, from the slot of the segment that posts to the slot of the one that joins.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from weft.compose.instance import Instance
from weft.compose.step import Step
from weft.errors import DeadlockError
from weft.runtime import closures
from weft.runtime.closures import Body, Closure, Frame
from weft.runtime.lanes import Lanes
from weft.schedule.action import Free, Join, Ordered, Post, Run, Wait

Environment = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundTemplate:
    """A template's closures, the slot of each value, and the slots that a wait looks at, by
    closure.
    """

    closures: tuple[Closure, ...]
    slots: Mapping[str, int]
    waits: Mapping[int, tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundInstance:
    """One instance: its template's closures and a frame prepared with its statics."""

    template: BoundTemplate
    prototype: Frame
    reads: tuple[tuple[int, str], ...]
    writes: tuple[tuple[int, str], ...]
    drops: tuple[str, ...]

    def enter(self, environment: Environment) -> Frame:
        """A frame with everything the template reads; keys that nobody reads later leave the
        environment.
        """
        frame = self.prototype.copy()
        for slot, key in self.reads:
            frame[slot] = environment[key]
        for key in self.drops:
            environment.pop(key, None)
        return frame

    def leave(self, frame: Frame, environment: Environment) -> None:
        """Publishes what later instances read."""
        for slot, key in self.writes:
            environment[key] = frame[slot]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocked:
    """Where a run stands: the collective it waits for, in which instance, at which closure."""

    task: str
    instance: int
    closure: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundStep:
    """A step that runs."""

    instances: tuple[BoundInstance, ...]

    def run(self, environment: Environment) -> Environment:
        """Runs every instance in order; returns the environment with the step's results."""
        for instance in self.instances:
            frame = instance.enter(environment)
            for task in instance.template.closures:
                task(frame)
            instance.leave(frame, environment)
        return environment

    def advance(self, environment: Environment) -> Iterator[Blocked]:
        """Runs the same, yielding where it stands while a collective cannot complete."""
        for number, instance in enumerate(self.instances):
            frame = instance.enter(environment)
            waits = instance.template.waits
            for position, task in enumerate(instance.template.closures):
                if position in waits:
                    slot, name = waits[position]
                    while not frame[slot].ready():
                        yield Blocked(task=name, instance=number, closure=position)
                task(frame)
            instance.leave(frame, environment)


def bind(
    step: Step, *, bodies: Mapping[str, Body], statics: Mapping[str, Any], lanes: Lanes
) -> BoundStep:
    """Every look-up of a step done now: bodies, attributes, slots, static tensors."""
    templates = {n: bind_template(o, bodies=bodies, lanes=lanes) for n, o in step.templates.items()}
    return BoundStep(
        instances=tuple(_bind_instance(i, templates[i.template], statics) for i in step.instances)
    )


def bind_template(ordered: Ordered, *, bodies: Mapping[str, Body], lanes: Lanes) -> BoundTemplate:
    """One template's actions as closures over slots."""
    slots = {name: i for i, name in enumerate(ordered.program.values)}
    flat: list[Closure] = []
    waits: dict[int, tuple[int, str]] = {}
    freed: list[int] = []

    def flush() -> None:
        if freed:
            flat.append(closures.free(freed.copy()))
            freed.clear()

    for action in ordered.actions:
        if isinstance(action, Free):
            freed.append(slots[action.value])
            continue
        flush()
        if isinstance(action, Join):
            slot = slots[action.value]
            waits[len(flat)] = (slot, action.value)
            flat.append(closures.wait(slot))
            continue
        task = action.task
        inputs, outputs = [slots[v] for v in task.inputs], [slots[v] for v in task.outputs]
        match action:
            case Run():
                body = partial(bodies[task.body], **task.attributes)
                flat.append(closures.run(body, inputs, outputs))
            case Post():
                body = partial(bodies[task.body], **task.attributes)
                flat.append(closures.run(lanes.posting(body, task.channel), inputs, outputs))
            case Wait():
                waits[len(flat)] = (outputs[0], task.name)
                flat.append(closures.wait(outputs[0]))
    flush()
    return BoundTemplate(closures=tuple(flat), slots=slots, waits=waits)


def _bind_instance(
    instance: Instance, template: BoundTemplate, statics: Mapping[str, Any]
) -> BoundInstance:
    frame: Frame = [None] * len(template.slots)
    for name, key in instance.statics.items():
        frame[template.slots[name]] = statics[key]
    return BoundInstance(
        template=template,
        prototype=frame,
        reads=tuple((template.slots[n], key) for n, key in instance.reads.items()),
        writes=tuple((template.slots[n], key) for n, key in instance.writes.items()),
        drops=instance.drops,
    )


def run_together(
    steps: Sequence[BoundStep],
    environments: Sequence[Environment],
    pending: Callable[[], Sequence[object]],
) -> None:
    """One loop over all ranks of a stacked world: whoever can go, goes. `pending` lists incomplete
    collectives.

    Raises:
        DeadlockError: nobody can advance; names each rank, the collective it waits for, and what is
        pending.
    """
    runs = {rank: s.advance(e) for rank, (s, e) in enumerate(zip(steps, environments, strict=True))}
    waiting: dict[int, Blocked] = {}
    before: object = None
    while runs:
        for rank, run in list(runs.items()):
            blocked = next(run, None)
            if blocked is None:
                del runs[rank]
            else:
                waiting[rank] = blocked
        stand = tuple((rank, waiting[rank]) for rank in runs)
        if runs and stand == before:  # a whole round in which nobody moved
            stuck = ", ".join(f"rank {rank} waits for {blocked.task}" for rank, blocked in stand)
            posted = "; ".join(str(p) for p in pending())
            raise DeadlockError(f"nobody can advance: {stuck}; pending: {posted}")
        before = stand
