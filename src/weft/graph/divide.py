"""One program as two: some tasks now, the others in a later segment.

    whole    x -> [a] -> y -> [collective] -> z -> [b] -> out
    first    x -> [a] -> y -> [collective] -> z in flight           opens z
    second   z in flight -> [b] -> out                              joins z

What the second part needs of the first leaves it as an output; the result of a collective that only
the second part reads, and nobody else, leaves it in flight. What arrives in flight and both parts
read is joined by the first and passed on. Weight gradients are put off this way,
and a collective gets whatever runs between the two parts to hide behind.
"""

from collections.abc import Collection
from dataclasses import replace

from weft.errors import ProgramError
from weft.graph.opset import Lane
from weft.graph.program import Program, Task, verify


def divide(program: Program, later: Collection[str], names: tuple[str, str]) -> tuple[Program, ...]:
    """The program without the tasks named in `later`, and those tasks.

    Raises:
        ProgramError: a task that stays reads what a later one makes.
    """
    now = tuple(task for task in program.tasks if task.name not in later)
    then = tuple(task for task in program.tasks if task.name in later)
    early = sorted(_read(now) & _made(then))
    if early:
        raise ProgramError(f"{program.name}: {names[0]} reads {early}, which {names[1]} makes")
    crossing = _made(now) & _read(then)
    opens = _in_flight(now) & crossing - _read(now) - {*program.outputs, *program.kept}
    passed = tuple(v for v in program.joins if v in _read(now) & _read(then))
    first = _part(program, names[0], now, crossing)
    first = replace(first, outputs=(*first.outputs, *passed))
    second = _part(program, names[1], then, set())
    second = replace(second, joins=tuple(v for v in second.joins if v not in passed))
    return (
        verify(replace(first, opens=(*first.opens, *_ordered(now, opens)))),
        verify(replace(second, joins=(*second.joins, *_ordered(now, opens)))),
    )


def _part(program: Program, name: str, tasks: tuple[Task, ...], crossing: set[str]) -> Program:
    made, read = _made(tasks), _read(tasks)
    outside = (v for v in _ordered(program.tasks, read - made) if v not in program.inputs)
    inputs = (*(v for v in program.inputs if v in read), *outside)
    own = [v for v in program.outputs if v in made]
    extra = [v for v in _ordered(tasks, crossing) if v not in own]
    outputs = (*own, *extra)
    mentioned = {*inputs, *made}
    return Program(
        name=name,
        values={k: v for k, v in program.values.items() if k in mentioned},
        inputs=inputs,
        outputs=outputs,
        tasks=tasks,
        kept=tuple(v for v in program.kept if v in made),
        opens=tuple(v for v in program.opens if v in made),
        joins=tuple(v for v in program.joins if v in read),
    )


def _made(tasks: Collection[Task]) -> set[str]:
    return {value for task in tasks for value in task.outputs}


def _read(tasks: Collection[Task]) -> set[str]:
    return {value for task in tasks for value in task.inputs}


def _in_flight(tasks: Collection[Task]) -> set[str]:
    return {v for task in tasks if task.lane is Lane.COMM for v in task.outputs}


def _ordered(tasks: Collection[Task], values: set[str]) -> tuple[str, ...]:
    """Values in the order in which tasks make them."""
    return tuple(v for task in tasks for v in task.outputs if v in values)
