"""Overlap between segments: instances divided, moved and braided so that one hides the other.

across  the first collective of a layer's backward is posted in the segment before, as soon as its
        gradient is there, and runs under the weight gradients that are left there

            B3             B2             B1              first, rest: graph.divide
            first3 | rest3 + first2 | rest2 + first1 | rest1

merge   the layers of one micro-batch's backward beside those of the next one's forward

            B3 B2 B1 F1' F2' F3'  ->  B3 + F1'  B2 + F2'  B1 + F3'

Sums keep their order: gradients of a micro-batch are still added before those of the next, and its
losses too. What lies between two runs of layers is moved before or behind the merged ones, and only
if it neither communicates nor shares a sum with them.

Paper: 2.4, 2.5; merging is not in the paper, whose forward relies on overlap inside operators.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from weft.compose.instance import Instance, divided_instance
from weft.compose.plan import Plan, sizes
from weft.compose.price import nominal_pricing
from weft.graph.braid import Strand, braid
from weft.graph.divide import divide
from weft.graph.program import Program, Task
from weft.model.families import Kind
from weft.schedule.action import is_collective
from weft.schedule.keep import is_heavy
from weft.schedule.sequence import interleaved

_READ_ONLY = ("param:", "state:")
_KINDS = frozenset(kind.value for kind in Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Woven:
    """Programs by name, and the instances that run them."""

    programs: Mapping[str, Program]
    instances: tuple[Instance, ...]


def woven(plan: Plan, programs: Mapping[str, Program], instances: Sequence[Instance]) -> Woven:
    """A step's segments with the overlaps between them that the plan asks for."""
    loom = _Loom(plan, programs)
    found = list(instances)
    if plan.merge:
        found = list(_merged(loom, found))
    if plan.across:
        found = list(_crossed(loom, found))
    used = {instance.template for instance in found}
    return Woven(
        programs={name: p for name, p in loom.programs.items() if name in used},
        instances=tuple(found),
    )


class _Loom:
    """Programs made so far; a pair of templates is braided once."""

    def __init__(self, plan: Plan, programs: Mapping[str, Program]) -> None:
        self.programs = dict(programs)
        self.parts: dict[str, tuple[Program, ...] | None] = {}
        self.sizes = sizes(plan)
        self.pricing = nominal_pricing()

    def beside(self, one: Instance, other: Instance, tags: tuple[str, str]) -> Instance:
        """Two instances as one of a braided template; keys that pass between them are wires."""
        first = Strand(tag=tags[0], program=self.programs[one.template])
        second = Strand(tag=tags[1], program=self.programs[other.template])
        values = {key: value for value, key in one.writes.items()}
        wires = {value: values[key] for value, key in other.reads.items() if key in values}
        title = f"{one.template}+{other.template}"
        if title not in self.programs:
            program = braid(title, first, second, wires)
            self.programs[title] = program if wires else self._mixed(program)
        return Instance(
            template=title,
            statics=_both(first, one.statics, second, other.statics),
            reads=_both(
                first, one.reads,
                second, {value: key for value, key in other.reads.items() if value not in wires},
            ),
            writes=_both(first, one.writes, second, other.writes),
        )  # fmt: skip

    def _mixed(self, program: Program) -> Program:
        """Independent strands: their tasks in turn, so that neither's collectives queue last."""
        return interleaved(program, lambda task: self.pricing(task, program, self.sizes))

    def divided(self, instance: Instance, crossing: str) -> tuple[Instance, ...]:
        """An instance as its first collective and the rest, or as it is if that is not light."""
        name = instance.template
        if name not in self.parts:
            program = self.programs[name]
            first = opening(program)
            later = {task.name for task in program.tasks} - {task.name for task in first}
            names = (f"{name}.first", f"{name}.rest")
            self.parts[name] = divide(program, later, names) if first else None
            self.programs.update({part.name: part for part in self.parts[name] or ()})
        parts = self.parts[name]
        return (instance,) if parts is None else divided_instance(instance, parts, crossing)


def _both(
    first: Strand, ours: Mapping[str, str], second: Strand, theirs: Mapping[str, str]
) -> dict[str, str]:
    return {
        **{first.name(value): key for value, key in ours.items()},
        **{second.name(value): key for value, key in theirs.items()},
    }


def opening(program: Program) -> tuple[Task, ...]:
    """The first collective of a backward that carries its gradient, behind what it needs; nothing
    where that takes a product, which is no opening but half the layer.
    """
    made = program.producer()
    reached = {program.inputs[0]}
    for task in program.tasks:
        if reached.isdisjoint(task.inputs):
            continue
        reached.update(task.outputs)
        if is_collective(task):
            needed = _needed(task, made)
            light = not any(is_heavy(other) for other in needed)
            return tuple(t for t in program.tasks if t in needed) if light else ()
    return ()


def _needed(task: Task, made: Mapping[str, Task]) -> list[Task]:
    found = [task]
    for value in task.inputs:
        if value in made:
            found += _needed(made[value], made)
    return found


# ---- across --------------------------------------------------------------------------------------


def _crossed(loom: _Loom, instances: Sequence[Instance]) -> Iterator[Instance]:
    waiting: Instance | None = None  # the rest of a backward, until it is known what follows
    for position, instance in enumerate(instances):
        if not _is_layer(instance, "backward"):
            yield from (() if waiting is None else (waiting,))
            waiting = None
            yield instance
            continue
        *first, rest = loom.divided(instance, f"across {position}")
        if waiting is None:
            yield from first
        elif first:
            yield loom.beside(waiting, first[0], ("a", "b"))
        else:
            yield waiting
        waiting = rest
    yield from (() if waiting is None else (waiting,))


# ---- merge ---------------------------------------------------------------------------------------


def _merged(loom: _Loom, instances: Sequence[Instance]) -> Iterator[Instance]:
    at = 0
    while at < len(instances):
        back = _run(instances, at, "backward")
        between = _others(instances, at + len(back)) if back else []
        fore = _run(instances, at + len(back) + len(between), "forward")
        sides = _sides(loom, back, between, fore) if back and fore else None
        if sides is None:
            yield from back or instances[at : at + 1]
            at += max(len(back), 1)
            continue
        before, behind = sides
        yield from before
        for one, other in zip(back, fore, strict=False):
            yield loom.beside(one, other, ("b", "f"))
        shorter = min(len(back), len(fore))
        yield from (*back[shorter:], *fore[shorter:], *behind)
        at += len(back) + len(between) + len(fore)


def _is_layer(instance: Instance, direction: str) -> bool:
    kind, _, rest = instance.template.partition(".")
    return rest == direction and kind in _KINDS


def _run(instances: Sequence[Instance], at: int, direction: str) -> list[Instance]:
    """The layers in a row from a position."""
    found: list[Instance] = []
    while at < len(instances) and _is_layer(instances[at], direction):
        found.append(instances[at])
        at += 1
    return found


def _others(instances: Sequence[Instance], at: int) -> list[Instance]:
    """What is no layer, in a row from a position."""
    found: list[Instance] = []
    while at < len(instances) and not any(
        _is_layer(instances[at], direction) for direction in ("forward", "backward")
    ):
        found.append(instances[at])
        at += 1
    return found


def _sides(
    loom: _Loom, back: list[Instance], between: list[Instance], fore: list[Instance]
) -> tuple[list[Instance], list[Instance]] | None:
    """What lies between as what the forward needs and the others, if that may be told apart."""
    wanted = {key for instance in fore for key in instance.reads.values()}
    before: list[Instance] = []
    behind: list[Instance] = []
    for instance in reversed(between):
        needed = not wanted.isdisjoint(instance.writes.values())
        (before if needed else behind).insert(0, instance)
        wanted.update(instance.reads.values() if needed else ())
    early, late = (*before, *fore), (*back, *behind)
    if wanted & {key for instance in late for key in instance.writes.values()}:
        return None
    if _sums(early) & _sums(late) or any(_communicates(loom, i) for i in between):
        return None
    return before, behind


def _sums(instances: Iterable[Instance]) -> set[str]:
    """The long-lived tensors that instances may change."""
    keys = (key for instance in instances for key in instance.statics.values())
    return {key for key in keys if not key.startswith(_READ_ONLY)}


def _communicates(loom: _Loom, instance: Instance) -> bool:
    program = loom.programs[instance.template]
    return any(map(is_collective, program.tasks)) or bool(program.joins)
