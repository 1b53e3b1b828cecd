"""A program: named values and the tasks that make them, in one straight line.

Every value is made once. What looks like mutation (a gradient added into `main_grad`, a loss into
its sum) is a chain of values `acc -> acc'`, so that data flow alone says which orders are legal.
Deliberately no control flow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.opset import Lane, Op, lookup

Attribute = str | int | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One named tensor (or host object): its dims in letters and its kind of dtype."""

    name: str
    dims: str
    kind: str = "act"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One call of one body: `outputs = op(inputs, **attributes)`.

    `renames` maps letters of the operator's signature to the letters this call has in their place.
    """

    name: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))
    renames: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def op(self) -> Op:
        return lookup(self.body.partition(".")[0])

    @property
    def phase(self) -> str:
        """`""` for a forward call, else `dgrad`, `wgrad` or `fused`."""
        return self.body.partition(".")[2]

    @property
    def lane(self) -> Lane:
        return self.op.lane

    @property
    def group(self) -> str:
        """The process group a collective runs in, as its axis name."""
        return str(self.attributes["axis"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Tasks in a legal serial order, the values they mention, and what goes in and out.

    `kept` are outputs that exist only for the backward.
    """

    name: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: tuple[Task, ...]
    kept: tuple[str, ...] = ()

    def producer(self) -> dict[str, Task]:
        """Which task makes each value that is not an input."""
        return {name: task for task in self.tasks for name in task.outputs}

    def consumers(self) -> dict[str, list[Task]]:
        """Which tasks read each value, in program order."""
        readers: dict[str, list[Task]] = {}
        for task in self.tasks:
            for name in dict.fromkeys(task.inputs):
                readers.setdefault(name, []).append(task)
        return readers


def verify(program: Program) -> Program:
    """Returns the program after checking that it is one: each value made once, before it is read.

    Raises:
        ProgramError: naming the task and the value.
    """
    made = set(program.inputs)
    names: set[str] = set()
    for task in program.tasks:
        if task.name in names:
            raise ProgramError(f"{program.name}: two tasks are called {task.name}")
        names.add(task.name)
        missing = [name for name in task.inputs if name not in made]
        if missing:
            raise ProgramError(
                f"{program.name}: task {task.name} reads {missing} before it is made"
            )
        again = [name for name in task.outputs if name in made]
        if again:
            raise ProgramError(f"{program.name}: task {task.name} makes {again} a second time")
        made.update(task.outputs)
    _require(program, made, (*program.outputs, *program.kept))
    return program


def _require(program: Program, made: set[str], names: Iterable[str]) -> None:
    absent = [name for name in names if name not in made]
    if absent:
        raise ProgramError(f"{program.name}: promises {absent}, which no task makes")


def join(name: str, first: Program, second: Program) -> Program:
    """One program of two, the second reading what the first makes; what only the second needs
    becomes an input.
    """
    made = {v for task in first.tasks for v in task.outputs} | set(first.inputs)
    return verify(
        Program(
            name=name,
            values={**first.values, **second.values},
            inputs=(*first.inputs, *(v for v in second.inputs if v not in made)),
            outputs=tuple(dict.fromkeys((*first.outputs, *second.outputs))),
            tasks=(*first.tasks, *second.tasks),
        )
    )
