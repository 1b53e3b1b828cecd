"""The recorder: the interpretation of a layer that gives its program.

A layer is a Python function over an operator algebra; an algebra has one method, `call`. This one
writes down a task and hands back names. (`runtime.eager` has the other: it computes at once.)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from weft.errors import ProgramError
from weft.graph.opset import Port, lookup
from weft.graph.program import Attribute, Program, Task, Value, verify

V = TypeVar("V")


class Algebra(Protocol[V]):
    """What a layer is written over: one call an operator, over values of any sort."""

    def call(
        self, op: str, *inputs: V, renames: Mapping[str, str] = ..., **attributes: Attribute
    ) -> tuple[V, ...]:
        """The outputs of one operator, always as a tuple."""
        ...


class Recorder:
    """Builds one program, call by call. It lives as long as one recording."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.tasks: list[Task] = []
        self._used: dict[str, int] = {}

    def input(self, name: str, dims: str, kind: str = "act") -> Value:
        """Declares an input of the program."""
        if name in self.values:
            raise ProgramError(f"{self.name}: input {name} declared twice")
        value = Value(name=name, dims=dims, kind=kind)
        self.values[name] = value
        self.inputs.append(name)
        return value

    def call(
        self,
        op: str,
        *inputs: Value,
        renames: Mapping[str, str] = MappingProxyType({}),
        **attributes: Attribute,
    ) -> tuple[Value, ...]:
        """Records one operator and returns its outputs."""
        entry = lookup(op)
        if len(inputs) != len(entry.inputs):
            expected = ", ".join(p.name for p in entry.inputs)
            raise ProgramError(f"{op} takes ({expected}), got {[v.name for v in inputs]}")
        outputs = tuple(self.fresh(port, renames) for port in entry.outputs)
        self.emit(op, tuple(v.name for v in inputs), outputs, attributes, renames)
        return outputs

    def fresh(self, port: Port, renames: Mapping[str, str]) -> Value:
        """A new value shaped like a port."""
        dims = " ".join(renames.get(term, term) for term in port.dims.split())
        return self.name_value(port.name, dims, port.kind)

    def name_value(self, stem: str, dims: str, kind: str) -> Value:
        """A new value under the first free name with that stem."""
        value = Value(name=self._unique(stem), dims=dims, kind=kind)
        self.values[value.name] = value
        return value

    def emit(
        self,
        body: str,
        inputs: tuple[str, ...],
        outputs: tuple[Value, ...],
        attributes: Mapping[str, Attribute],
        renames: Mapping[str, str],
    ) -> None:
        """Appends one task."""
        self.tasks.append(
            Task(
                name=self._unique(body),
                body=body,
                inputs=inputs,
                outputs=tuple(v.name for v in outputs),
                attributes=MappingProxyType(dict(attributes)),
                renames=MappingProxyType(dict(renames)),
            )
        )

    def finish(
        self,
        *outputs: Value,
        kept: tuple[str, ...] = (),
        opens: tuple[Value, ...] = (),
        joins: tuple[Value, ...] = (),
    ) -> Program:
        """The recorded program; `opens` leave in flight, `joins` arrive so."""
        return verify(
            Program(
                name=self.name,
                values=MappingProxyType(dict(self.values)),
                inputs=tuple(self.inputs),
                outputs=tuple(v.name for v in outputs),
                tasks=tuple(self.tasks),
                kept=kept,
                opens=tuple(v.name for v in opens),
                joins=tuple(v.name for v in joins),
            )
        )

    def _unique(self, stem: str) -> str:
        count = self._used.get(stem, 0) + 1
        self._used[stem] = count
        name = stem if count == 1 else f"{stem}_{count}"
        return name if name not in self.values else self._unique(stem)
