"""The checker of a whole step: what a segment leaves in flight is joined, once, by a later one.

Inside a segment `schedule.check` has the rules. Between segments a value in flight travels under a
key, from the instance that posts the collective to the one that joins it, and in between

    nobody else reads the key, or writes under it (nor reads it later: a handle is no value);
    nobody touches the long-lived tensors that the collective reads or writes in place
    (a gradient bucket on its way is not added to).

Whatever else a collective reads is alive as long as its handle.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft.compose.instance import Instance, is_shape
from weft.errors import ProgramError
from weft.graph.program import Program
from weft.parallel.zero import Bucket


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """A collective between its segment and the one that joins it, and the buffers it touches."""

    position: int
    task: str
    buffers: frozenset[str]


def check_edges(
    instances: tuple[Instance, ...], programs: Mapping[str, Program], buckets: tuple[Bucket, ...]
) -> tuple[Instance, ...]:
    """Returns the instances if their edges are legal.

    Raises:
        ProgramError: the rule broken, the instance and the collective.
    """
    buffers = _buffers(buckets)
    flying: dict[str, Flight] = {}
    spent: set[str] = set()
    for position, instance in enumerate(instances):
        program = programs[instance.template]
        problem = (
            _join(instance, program, flying, spent)
            or _touch(instance, flying, buffers)
            or _post(instance, program, position, flying, buffers)
        )
        if problem:
            raise ProgramError(f"instance {position}, {instance.template}: {problem}")
        spent.difference_update(instance.writes.values())
    for key, flight in flying.items():
        raise ProgramError(
            f"instance {flight.position}: {flight.task} leaves {key} in flight and nobody joins it"
        )
    return instances


def _join(
    instance: Instance, program: Program, flying: dict[str, Flight], spent: set[str]
) -> str | None:
    joined = {instance.reads[value] for value in program.joins}
    for value, key in instance.reads.items():
        if key in flying and key not in joined:
            return f"reads {key} as {value} while {flying[key].task} is in flight"
        if key in joined and flying.pop(key, None) is None:
            return f"joins {key}, which is not in flight"
        if key in spent:
            return f"reads {key} as {value}, which an earlier segment has joined; pass it on there"
    spent.update(joined)
    return None


def _touch(
    instance: Instance, flying: Mapping[str, Flight], buffers: Mapping[str, frozenset[str]]
) -> str | None:
    touched = {held: key for key in instance.statics.values() for held in _held(key, buffers)}
    for flight in flying.values():
        for buffer in flight.buffers & touched.keys():
            return f"touches {touched[buffer]} while {flight.task} of {buffer} is in flight"
    return None


def _post(
    instance: Instance,
    program: Program,
    position: int,
    flying: dict[str, Flight],
    buffers: Mapping[str, frozenset[str]],
) -> str | None:
    busy = [key for key in instance.writes.values() if key in flying]
    if busy:
        return f"writes {busy[0]} while {flying[busy[0]].task} is in flight"
    makers = program.producer()
    for value in program.opens:
        task = makers[value]
        if value not in instance.writes:
            return f"{task.name} leaves {value} in flight and nobody joins it"
        held = (instance.statics[v] for v in task.inputs if v in instance.statics)
        flying[instance.writes[value]] = Flight(
            position=position,
            task=task.name,
            buffers=frozenset[str]().union(*(_held(key, buffers) for key in held)),
        )
    return None


def _buffers(buckets: tuple[Bucket, ...]) -> Mapping[str, frozenset[str]]:
    """The memory of each parameter and each gradient, a bucket at a time."""
    found: dict[str, frozenset[str]] = {}
    for bucket in buckets:
        memory = frozenset({f"gradients:{bucket.buffer.memory} from {bucket.start}"})
        found[f"gradients:{bucket.name}"] = memory
        for slot in bucket.slots:
            for one, held in (("param", frozenset({f"bucket:{bucket.name}"})), ("grad", memory)):
                key = f"{one}:{slot.parameter.name}"
                found[key] = found.get(key, frozenset()) | held
    return found


def _held(key: str, buffers: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The buffers behind a key; behind a shape there is none."""
    if is_shape(key):
        return frozenset()
    return buffers.get(key, frozenset({key}))
