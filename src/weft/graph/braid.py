"""Two programs as one, so that one order can run them beside each other.

    one    x -> [a] -> y                      b.x -> [b.a] -> b.y
    other  u, w.v -> [c] -> z       together  f.u, w.f.v -> [f.c] -> f.z

Each strand has a tag that its values and tasks carry in front; the prefixes that say who provides
an input (`w.`, `acc.`, `s.`) stay in front of that. A wire makes an input of the second strand the
output of the first that it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.graph.program import Program, Task, Value, verify

_PROVIDERS = ("w.", "acc.", "s.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Strand:
    """A program and the tag of its names."""

    tag: str
    program: Program

    def name(self, value: str) -> str:
        """What a value of the program is called in the braid.

        Example:
            >>> Strand(tag="b", program=None).name("acc.w.qkv")
            'acc.b.w.qkv'
        """
        prefix = next((p for p in _PROVIDERS if value.startswith(p)), "")
        return f"{prefix}{self.tag}.{value.removeprefix(prefix)}"


def braid(
    title: str, one: Strand, other: Strand, wires: Mapping[str, str] = MappingProxyType({})
) -> Program:
    """Both programs side by side, the first strand's tasks first; `wires` gives inputs of the other
    and the outputs of the first that they are.
    """
    names = {v: other.name(v) for v in other.program.values}
    names.update({theirs: one.name(ours) for theirs, ours in wires.items()})
    first = _renamed(one, {v: one.name(v) for v in one.program.values})
    second = _renamed(other, names)
    made = {value for task in first.tasks for value in task.outputs}
    return verify(
        Program(
            name=title,
            values={**second.values, **first.values},
            inputs=tuple(
                dict.fromkeys((*first.inputs, *(v for v in second.inputs if v not in made)))
            ),
            outputs=(*first.outputs, *second.outputs),
            tasks=(*first.tasks, *second.tasks),
            kept=(*first.kept, *second.kept),
            opens=(*first.opens, *second.opens),
            joins=(*first.joins, *second.joins),
        )
    )


def _renamed(strand: Strand, names: Mapping[str, str]) -> Program:
    def each(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[value] for value in values)

    def task(old: Task) -> Task:
        title = f"{strand.tag}.{old.name}"
        return replace(old, name=title, inputs=each(old.inputs), outputs=each(old.outputs))

    def value(old: Value) -> Value:
        return replace(old, name=names[old.name])

    program = strand.program
    return replace(
        program,
        values={names[name]: value(old) for name, old in program.values.items()},
        inputs=each(program.inputs),
        outputs=each(program.outputs),
        tasks=tuple(map(task, program.tasks)),
        kept=each(program.kept),
        opens=each(program.opens),
        joins=each(program.joins),
    )
