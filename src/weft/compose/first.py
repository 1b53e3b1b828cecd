"""Which weight gradients of a step write: the first one to each sum, where its body can.

    micro-batch 0    acc -> [wgrad_first] -> acc'      over what is there, none of it read
    micro-batch 1    acc -> [wgrad]       -> acc'      added

What is written first is not zeroed before, all else in a gradient's memory is. A reduction that
clears what it has summed (ZeRO-2) begins the sums of its bucket anew; where all of its buckets are
written first, it has nothing to clear.

This is a pass over a step whose orders are made: instances that write run the tasks of their
template by other bodies, in the same order, so nothing is searched twice. A template whose
instances all write stays the only one; where others add, those that write have their own, as
`moe.backward@first`. An instance writes all of its gradients that have such a body, or none.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.compose.instance import Instance
from weft.graph.opset import FIRST
from weft.graph.program import Program, Task
from weft.parallel.zero import Bucket, Buffer
from weft.schedule.action import Action, Free, Join, Ordered, Run

_SUFFIX = "@first"

Zeroed = Mapping[str, tuple[range, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """Templates and instances of a step whose sums begin with a write, and the elements of each
    memory of gradients that are zeroed before it.
    """

    templates: Mapping[str, Ordered]
    instances: tuple[Instance, ...]
    zeroed: Zeroed


def begun(
    templates: Mapping[str, Ordered], instances: Sequence[Instance], buckets: Sequence[Bucket]
) -> Begun:
    """The step with every sum that can be begun by a write."""
    sums = _Sums({name: ordered.program for name, ordered in templates.items()}, buckets)
    known = [(one, sums.meet(one)) for one in instances]
    adding = {one.template for one, writes in known if not writes}
    first = {
        one.template: f"{one.template}{_SUFFIX}" if one.template in adding else one.template
        for one, writes in known
        if writes
    }
    made: dict[str, Ordered] = {}
    for name, ordered in templates.items():
        made[name] = ordered
        if name in first:
            made[first[name]] = writing(ordered, first[name])
    zeroed = _zeroed(buckets, sums.written)
    needless = sums.clears - set(_clearing(instances, buckets, zeroed))
    made.update({name: _without_clear(made[name]) for name in needless})
    return Begun(
        templates=MappingProxyType(made),
        instances=tuple(
            replace(one, template=first[one.template]) if writes else one for one, writes in known
        ),
        zeroed=MappingProxyType(zeroed),
    )


def first_of(template: str, templates: Collection[str]) -> str:
    """The template that the first micro-batch of a step runs in place of this one."""
    own = f"{template}{_SUFFIX}"
    return own if own in templates else template


def usual_of(template: str) -> str:
    """The template that the later micro-batches run where this one is the first's.

    Example:
        >>> usual_of("moe.backward@first"), usual_of("moe.backward")
        ('moe.backward', 'moe.backward')
    """
    return template.removesuffix(_SUFFIX)


def writing(ordered: Ordered, name: str) -> Ordered:
    """The order by the bodies that write, where a sum enters them from outside."""
    program = ordered.program
    others = {task.name: _by_writing(task) for task in _writable(program).values()}

    def action(one: Action) -> Action:
        if isinstance(one, Free | Join) or one.task.name not in others:
            return one
        return replace(one, task=others[one.task.name])

    tasks = tuple(others.get(task.name, task) for task in program.tasks)
    return Ordered(
        program=replace(program, name=name, tasks=tasks),
        actions=tuple(action(one) for one in ordered.actions),
    )


def _by_writing(task: Task) -> Task:
    return replace(task, body=f"{task.op.name}.{FIRST}")


def _writable(program: Program) -> dict[str, Task]:
    """The tasks that can write, by the sum that each is the only one to read."""
    readers = program.consumers()
    found = {v: readers.get(v, []) for v in program.inputs if v.startswith("acc.")}
    return {
        value: tasks[0]
        for value, tasks in found.items()
        if len(tasks) == 1 and tasks[0].phase == "wgrad" and tasks[0].op.writes
    }


class _Sums:
    """The sums under way at a point of a step, and the gradients whose sums begin with a write."""

    def __init__(self, programs: Mapping[str, Program], buckets: Sequence[Bucket]) -> None:
        self.writable = {name: frozenset(_writable(p)) for name, p in programs.items()}
        self.clears = {n for n, p in programs.items() if any(map(_clears, p.tasks))}
        self.homes: dict[str, set[str]] = {}
        for bucket in buckets:
            for slot in bucket.slots:
                self.homes.setdefault(f"grad:{slot.parameter.name}", set()).add(bucket.name)
        self.open: set[tuple[str, str]] = set()  # sums under way: a gradient, and a bucket of it
        self.begun_by_write: set[str] = set()
        self.begun_by_adding: set[str] = set()

    @property
    def written(self) -> set[str]:
        return self.begun_by_write - self.begun_by_adding

    def meet(self, instance: Instance) -> bool:
        """Whether the instance, which comes next, writes."""
        touched = {v: k for v, k in instance.statics.items() if k.startswith("grad:")}
        new = {v for v, key in touched.items() if not self._is_open(key)}
        writable = self.writable[instance.template]
        writes = bool(writable) and writable <= new
        for value in new:
            by_write = writes and value in writable
            (self.begun_by_write if by_write else self.begun_by_adding).add(touched[value])
        for key in touched.values():
            self.open.update((key, bucket) for bucket in self.homes[key])
        if instance.template in self.clears:
            cleared = {k.partition(":")[2] for k in instance.statics.values()}
            self.open = {(key, bucket) for key, bucket in self.open if bucket not in cleared}
        return writes

    def _is_open(self, key: str) -> bool:
        return any((key, bucket) in self.open for bucket in self.homes[key])


def _clears(task: Task) -> bool:
    return task.body == "clear_grad"


# ---- what is zeroed ------------------------------------------------------------------------------


def _zeroed(buckets: Iterable[Bucket], written: Collection[str]) -> dict[str, tuple[range, ...]]:
    """Of each memory what some buffer in it does not write first, paddings among it."""
    found: dict[str, list[range]] = {}
    for buffer in {bucket.buffer.name: bucket.buffer for bucket in buckets}.values():
        found.setdefault(buffer.memory, []).extend(_gaps(buffer, written))
    return {memory: tuple(_merged(ranges)) for memory, ranges in found.items()}


def _gaps(buffer: Buffer, written: Collection[str]) -> Iterator[range]:
    """What lies between the gradients of a buffer that are written first."""
    start = 0
    for slot in buffer.slots:
        if f"grad:{slot.parameter.name}" in written:
            yield range(start, slot.start)
            start = slot.start + slot.parameter.numel
    yield range(start, buffer.numel)


def _clearing(
    instances: Iterable[Instance], buckets: Sequence[Bucket], zeroed: Zeroed
) -> Iterator[str]:
    """The templates that touch a bucket of which something is zeroed."""
    partly = {f"gradients:{bucket.name}" for bucket in buckets if _is_zeroed(bucket, zeroed)}
    return (one.template for one in instances if not partly.isdisjoint(one.statics.values()))


def _is_zeroed(bucket: Bucket, zeroed: Zeroed) -> bool:
    stop = bucket.start + bucket.numel
    return any(r.start < stop and bucket.start < r.stop for r in zeroed[bucket.buffer.memory])


def _without_clear(ordered: Ordered) -> Ordered:
    """The order without its clearing, whose result nobody reads."""
    program = ordered.program
    gone = {value for task in program.tasks if _clears(task) for value in task.outputs}
    kept = replace(
        program,
        values={name: value for name, value in program.values.items() if name not in gone},
        outputs=tuple(name for name in program.outputs if name not in gone),
        tasks=tuple(task for task in program.tasks if not _clears(task)),
    )
    actions = (one for one in ordered.actions if not (isinstance(one, Run) and _clears(one.task)))
    return Ordered(program=kept, actions=tuple(actions))


def _merged(ranges: Iterable[range]) -> Iterator[range]:
    """The same elements by as few ranges, in order; empty ones left out."""
    last = range(0)
    for one in sorted((r for r in ranges if r), key=lambda r: r.start):
        if last and one.start > last.stop:
            yield last
            last = one
        else:
            last = range(last.start if last else one.start, max(last.stop, one.stop))
    if last:
        yield last
