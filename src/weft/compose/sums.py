"""The checker of a step's sums: each gradient is zeroed or written, then added to, then summed.

A memory of gradients is cut where any parameter, bucket or zeroed range in it begins or ends. Each
of its stretches goes through

    left over    what the step before has left           | zeroed before the step
    zero         nothing yet                             | a task writes, or adds to zeros
    own          a sum under way, of one gradient        | tasks of that gradient add
    taken        read by the reduction of its bucket     | cleared by that, or written (ZeRO-2)

and whatever else a task would do is refused: adding to or summing what is left over, writing over
a sum, adding to that of another gradient in the same memory or to one that is taken.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from weft.compose.first import Zeroed
from weft.compose.instance import Instance
from weft.errors import ProgramError
from weft.graph.opset import FIRST
from weft.graph.program import Program, Task
from weft.parallel.zero import Bucket

LEFT, ZERO, TAKEN = "left over", "zero", "taken"

Stretch = tuple[str, int]  # a memory, and where it begins there


class _Act(StrEnum):
    """What a task does to a stretch of gradients."""

    WRITE = "writes over"
    ADD = "adds to"
    TAKE = "sums"
    CLEAR = "clears"


def check_sums(
    instances: tuple[Instance, ...],
    programs: Mapping[str, Program],
    buckets: Sequence[Bucket],
    *,
    zeroed: Zeroed,
) -> tuple[Instance, ...]:
    """Returns the instances if all that they sum begins with zeros or with a write.

    Raises:
        ProgramError: the instance, the task, the gradient, and what was found there.
    """
    places = _places(buckets, zeroed)
    acts = {name: tuple(_acts(program)) for name, program in programs.items()}
    state = {at: LEFT for stretches in places.values() for at in stretches}
    for memory, ranges in zeroed.items():
        state.update({at: ZERO for r in ranges for at in places[_zeroed_key(memory, r)]})
    for position, instance in enumerate(instances):
        for value, act, task in acts[instance.template]:
            key = instance.statics[value]
            for at in places[key]:
                problem = _problem(act, state[at], key)
                if problem:
                    raise ProgramError(
                        f"instance {position}, {instance.template}: {task} {act} {key}, {problem}"
                    )
                state[at] = {_Act.TAKE: TAKEN, _Act.CLEAR: ZERO}.get(act, key)
    return instances


def _problem(act: _Act, found: str, key: str) -> str | None:
    """What stands against an act on a stretch of this gradient, or of this bucket."""
    match act:
        case _Act.WRITE if found not in (LEFT, ZERO, TAKEN):
            return f"where {_told(found)}; the first to add is the one that writes"
        case _Act.ADD if found not in (ZERO, key):
            return f"where {_told(found)}; zero it before the step, or write it first"
        case _Act.TAKE if found == LEFT:
            return f"where {_told(found)}; zero it before the step, or write it first"
        case _Act.CLEAR if found != TAKEN:
            return f"where {_told(found)}; sum it before"
        case _:
            return None


def _told(found: str) -> str:
    match found:
        case "left over":
            return "the last step's values are left"
        case "zero":
            return "zeros are"
        case "taken":
            return "a sum is taken"
        case key:
            return f"a sum of {key} is under way"


def _acts(program: Program) -> Iterator[tuple[str, _Act, str]]:
    """What a program does to each sum that comes from outside, in its order."""
    origin = {value: value for value in program.inputs if value.startswith("acc.")}
    for task in program.tasks:
        sums = [value for value in task.inputs if value in origin]
        for value in sums:
            yield origin[value], _act(task), task.name
        after = (value for value in task.outputs if value.startswith("acc."))
        origin.update({new: origin[old] for new, old in zip(after, sums, strict=False)})


def _act(task: Task) -> _Act:
    if task.body == "clear_grad":
        return _Act.CLEAR
    if task.phase == FIRST:
        return _Act.WRITE
    return _Act.ADD if task.is_wgrad or task.phase == "fused" else _Act.TAKE


# ---- where gradients lie -------------------------------------------------------------------------


def _places(buckets: Sequence[Bucket], zeroed: Zeroed) -> Mapping[str, tuple[Stretch, ...]]:
    """The stretches of each gradient, each bucket, and each range that is zeroed."""
    ranges = dict(_ranges(buckets))
    ranges.update(
        {_zeroed_key(memory, r): (memory, r) for memory, rs in zeroed.items() for r in rs}
    )
    edges: dict[str, set[int]] = {}
    for memory, r in ranges.values():
        edges.setdefault(memory, set()).update((r.start, r.stop))
    cuts = {memory: sorted(found) for memory, found in edges.items()}

    def inside(memory: str, r: range) -> tuple[Stretch, ...]:
        own = cuts[memory]
        first, last = bisect_left(own, r.start), bisect_left(own, r.stop)
        return tuple((memory, start) for start in own[first:last])

    return {key: inside(memory, r) for key, (memory, r) in ranges.items()}


def _ranges(buckets: Sequence[Bucket]) -> Iterator[tuple[str, tuple[str, range]]]:
    for bucket in buckets:
        memory = bucket.buffer.memory
        whole = range(bucket.start, bucket.start + bucket.numel)
        yield f"gradients:{bucket.name}", (memory, whole)
        for slot in bucket.slots:
            own = range(slot.start, slot.start + slot.parameter.numel)
            yield f"grad:{slot.parameter.name}", (memory, own)


def _zeroed_key(memory: str, r: range) -> str:
    return f"zeroed:{memory} from {r.start}"
