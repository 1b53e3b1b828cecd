"""Replicas kept in step while the backward runs: reductions woven between the segments of a step.

    backward 3    backward 2       backward 1            backward 0
                  | reduce 3 ------|
                                   | reduce 2 -----------|
                                     end of reduce 3       end of reduce 2 ...     update

A reduction is one program (`parallel.sync`) cut behind each of its collectives. Its first part
follows the last segment that adds to the bucket, in the last micro-batch (ZeRO-1) or in each
(ZeRO-2, where the sums are added up in shards and the gradients cleared for the next). Every
further part follows one segment later, so that a collective is in flight under a whole backward,
and one between nodes beside one inside. What is still in flight is finished before the memory of a
gradient is used again. In a serial order a reduction is one segment, and a ring always is: its
hops read the gradient to the end.

Paper: 1.4, 1.5, 4.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weft.compose.instance import Instance
from weft.compose.plan import Plan
from weft.errors import LayoutError
from weft.graph.divide import divide
from weft.graph.program import Program
from weft.graph.record import Recorder
from weft.parallel import sync
from weft.parallel.sync import Wire
from weft.parallel.zero import Bucket
from weft.schedule.action import is_collective


@dataclass(frozen=True, kw_only=True, slots=True)
class Woven:
    """The instances of a step with its reductions among them, and the programs of these."""

    instances: tuple[Instance, ...]
    programs: Mapping[str, Program]


@dataclass(kw_only=True, slots=True)
class _Flight:
    """A reduction under way: the parts that are still to come."""

    bucket: Bucket
    key: str
    parts: list[Program]


def weave(plan: Plan, instances: Sequence[Instance], buckets: Sequence[Bucket]) -> Woven:
    """Puts the reduction of every bucket where its gradients are complete.

    Raises:
        LayoutError: gradients cannot take turns in memory where micro-batches are merged.
    """
    if plan.sync.zero > 1 and plan.merge:
        raise LayoutError(
            "parallel.zero = 2 with overlap.merge = true: a merged segment adds to gradients while "
            "those of another micro-batch are unsummed; try parallel.zero = 1"
        )
    made = {bucket.name: _parts(plan, bucket) for bucket in buckets}
    due = _due(instances, buckets, each=plan.sync.zero > 1)
    return Woven(
        instances=tuple(_woven(instances, due, made)),
        programs={part.name: part for parts in made.values() for part in parts},
    )


def is_end(template: str) -> bool:
    """Whether a template belongs to the end of a step: a reduction or the update."""
    return template == "update" or template.startswith("reduce.")


def shard_key(bucket: Bucket) -> str:
    """Where the update finds the sum of a bucket, as it is or in flight."""
    return f"shard.{bucket.name}"


def arrives_in_flight(plan: Plan, bucket: Bucket) -> bool:
    """Whether the sum of a bucket reaches the update in flight."""
    return bool(_parts(plan, bucket)[-1].opens)


# ---- programs ------------------------------------------------------------------------------------


def _parts(plan: Plan, bucket: Bucket) -> tuple[Program, ...]:
    whole = _reduction(plan, bucket)
    if plan.order == "serial" or plan.sync.gradients is Wire.BF16_RING:
        return (replace(whole, opens=()),)
    return tuple(_cut(whole))


def _reduction(plan: Plan, bucket: Bucket) -> Program:
    """The program of all buckets of one size on one axis."""
    o = Recorder(f"reduce.{bucket.axis}.{bucket.numel}")
    grad = o.input("acc.bucket", str(bucket.numel), "acc")
    place = plan.layout.replica(bucket.axis, plan.rank)
    shard = sync.reduce(o, grad, bucket.legs, wire=plan.sync.gradients, place=place)
    if plan.sync.zero == 1:
        last = is_collective(o.tasks[-1])
        return o.finish(shard, opens=(shard,) if last else ())
    total = o.input("s.shard", str(bucket.shard), "acc")
    return o.finish(*sync.accumulate(o, grad, shard, total))


def _cut(program: Program) -> Iterator[Program]:
    """The program behind each of its collectives; what is cut arrives in flight."""
    number, rest = 0, program
    while True:
        posts = [i for i, task in enumerate(rest.tasks) if is_collective(task)]
        later = [task.name for task in rest.tasks[posts[0] + 1 :]] if posts else []
        name = f"{program.name}.{number}"
        if not later:
            yield replace(rest, name=name)
            return
        first, rest = divide(rest, later, (name, "rest"))
        yield first
        number += 1


# ---- instances -----------------------------------------------------------------------------------


def _due(
    instances: Sequence[Instance], buckets: Sequence[Bucket], *, each: bool
) -> Mapping[int, list[Bucket]]:
    """Behind which instances the gradients of a bucket are complete: the last that adds to them, of
    the step or of each micro-batch.
    """
    last: dict[tuple[str, int], int] = {}
    for position, instance in enumerate(instances):
        gradients = _gradients(instance)  # a message has none, and is of no micro-batch
        number = _micro_batch(instance) if each and gradients else 0
        last.update({(key, number): position for key in gradients})
    due: dict[int, list[Bucket]] = {}
    for bucket in buckets:
        names = {f"grad:{slot.parameter.name}" for slot in bucket.buffer.slots}
        complete: dict[int, int] = {}
        for (key, number), position in last.items():
            if key in names:
                complete[number] = max(position, complete.get(number, 0))
        for position in complete.values():
            due.setdefault(position, []).append(bucket)
    return due


def _woven(
    instances: Sequence[Instance],
    due: Mapping[int, list[Bucket]],
    made: Mapping[str, tuple[Program, ...]],
) -> Iterator[Instance]:
    homes = {f"grad:{s.parameter.name}": b.buffer.memory for b in _all(due) for s in b.buffer.slots}
    flying: list[_Flight] = []
    for position, instance in enumerate(instances):
        touched = {homes[key] for key in _gradients(instance)}
        for flight in [f for f in flying if f.bucket.buffer.memory in touched]:
            yield from _advance([flight], len(flight.parts))
        yield instance
        if touched:
            yield from _advance(flying, 1)
            starting = [
                _Flight(bucket=b, key=f"reduce.{b.name}.{position}", parts=list(made[b.name]))
                for b in due.get(position, ())
            ]
            yield from _advance(starting, 1)
            flying = [flight for flight in (*flying, *starting) if flight.parts]
    while flying:
        yield from _advance(flying, 1)
        flying = [flight for flight in flying if flight.parts]


def _advance(flights: Sequence[_Flight], count: int) -> Iterator[Instance]:
    """The next parts of reductions, oldest first."""
    for flight in flights:
        for _ in range(min(count, len(flight.parts))):
            yield _instance(flight, flight.parts.pop(0))


def _instance(flight: _Flight, part: Program) -> Instance:
    held = {"acc.bucket": "gradients", "s.shard": "shard"}
    statics = {v: f"{held[v]}:{flight.bucket.name}" for v in part.inputs if v in held}
    writes = {v: f"{flight.key}.{v}" for v in part.outputs}
    if not flight.parts:
        writes = {part.outputs[0]: shard_key(flight.bucket)}
    return Instance(
        template=part.name,
        statics=statics,
        reads={v: f"{flight.key}.{v}" for v in part.inputs if v not in held},
        writes=writes,
    )


def _all(due: Mapping[int, list[Bucket]]) -> Iterator[Bucket]:
    return (bucket for buckets in due.values() for bucket in buckets)


def _gradients(instance: Instance) -> list[str]:
    return [key for key in instance.statics.values() if key.startswith("grad:")]


def _micro_batch(instance: Instance) -> int:
    key = next(key for key in instance.reads.values() if key.startswith("m"))
    return int(key.partition(".")[0][1:])
