"""What an order is made of: run a task, post a collective, wait for it, free a value.

A collective that its program leaves open is posted and not waited for: its output leaves the
segment in flight, and a later segment, of which it is an input, joins it. Whoever waits finds what
the collective reads alive, because the handle in flight holds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.graph.opset import Lane
from weft.graph.program import Program, Task


@dataclass(frozen=True, slots=True)
class Run:
    """Runs a task on the compute lane (or, for a host task, on the host)."""

    task: Task


@dataclass(frozen=True, slots=True)
class Post:
    """Starts a collective on its lane; its outputs are not there yet."""

    task: Task


@dataclass(frozen=True, slots=True)
class Wait:
    """Makes the compute lane wait for a posted collective."""

    task: Task


@dataclass(frozen=True, slots=True)
class Free:
    """Lets go of a value that nothing reads any more."""

    value: str


@dataclass(frozen=True, slots=True)
class Join:
    """Makes the compute lane wait for an input that an earlier segment left in flight."""

    value: str


Action = Run | Post | Wait | Join | Free


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    """A program and the order in which it is executed: the schedule of one segment."""

    program: Program
    actions: tuple[Action, ...]


def is_collective(task: Task) -> bool:
    """Whether a task is posted and waited for instead of run."""
    return task.lane is Lane.COMM


def is_open(program: Program, task: Task) -> bool:
    """Whether a collective is left in flight for a later segment."""
    return not set(program.opens).isdisjoint(task.outputs)


def with_frees(program: Program, actions: Sequence[Action]) -> tuple[Action, ...]:
    """The actions with each value freed after its last use; what a collective reads lives until its
    wait, and to the end of the segment if that is not here.
    """
    permanent = {*program.outputs, *program.kept}
    permanent.update(v for t in program.tasks if is_open(program, t) for v in t.inputs)
    permanent.update(v for v in program.inputs if v.startswith(("w.", "acc.", "s.")))
    last: dict[str, int] = {}
    for position, action in enumerate(actions):
        match action:
            case Run(task) | Wait(task):
                last.update(dict.fromkeys((*task.inputs, *task.outputs), position))
            case Join(value):
                last[value] = position
            case _:
                pass
    frees: dict[int, list[str]] = {}
    for value, position in last.items():
        if value not in permanent:
            frees.setdefault(position, []).append(value)
    result: list[Action] = []
    for position, action in enumerate(actions):
        result.append(action)
        result.extend(Free(value) for value in sorted(frees.get(position, ())))
    return tuple(result)
