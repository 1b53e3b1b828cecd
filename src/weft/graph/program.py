"""A program: named values and the tasks that make them, in one straight line.

Every value is made once. What looks like mutation (a gradient added into `main_grad`, a loss into
its sum) is a chain of values `acc -> acc'`, so that data flow alone says which orders are legal.
Deliberately no control flow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from weft.errors import ProgramError
from weft.graph.fused import lookup
from weft.graph.opset import FIRST, Lane, Op

USUAL_LANE = "comm"

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
        """`""` for a forward call, else `dgrad`, `wgrad`, `wgrad_first` or `fused`."""
        return self.body.partition(".")[2]

    @property
    def is_wgrad(self) -> bool:
        """Whether it makes a weight gradient, added or written."""
        return self.phase in ("wgrad", FIRST)

    @property
    def lane(self) -> Lane:
        return self.op.lane

    @property
    def group(self) -> str:
        """The process group a collective runs in, as its axis name."""
        return str(self.attributes["axis"])

    @property
    def channel(self) -> str:
        """What a collective is ordered on: its axis, and its lane where that is not the usual one.
        Sends and receives on a link are not ordered against each other.

        Example:
            >>> where = {"axis": "dense", "lane": "sync"}
            >>> Task(name="", body="all_gather", inputs=(), outputs=(), attributes=where).channel
            'dense/sync'
        """
        lane = self.attributes.get("lane", USUAL_LANE)
        way = f" {self.body}" if "peer" in self.attributes else ""
        return self.group if lane == USUAL_LANE else f"{self.group}/{lane}{way}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Tasks in a legal serial order, the values they mention, and what goes in and out.

    `kept` are outputs that exist only for the backward. `opens` are outputs that leave in flight: a
    collective is posted here and waited for in a later segment. `joins` are inputs that arrive so.
    """

    name: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tasks: tuple[Task, ...]
    kept: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()

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
    _verify_edges(program)
    return program


def _verify_edges(program: Program) -> None:
    """What leaves in flight is a collective's, read by nobody here; what arrives is an input."""
    makers, readers = program.producer(), program.consumers()
    for name in program.opens:
        maker = makers.get(name)
        if maker is None or maker.lane is not Lane.COMM or name not in program.outputs:
            raise ProgramError(f"{program.name}: opens {name}, which is no output of a collective")
        if name in readers:
            raise ProgramError(
                f"{program.name}: {readers[name][0].name} reads {name}, which is left open; "
                "read it in the segment that joins it"
            )
    strange = [name for name in program.joins if name not in program.inputs]
    if strange:
        raise ProgramError(f"{program.name}: joins {strange}, which are no inputs")


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
            opens=(*first.opens, *second.opens),
            joins=(*first.joins, *second.joins),
        )
    )
